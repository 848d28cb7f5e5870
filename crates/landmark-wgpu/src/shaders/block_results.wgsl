// What one query gets from some of the blocks that it sees, by one workgroup: retrieved ones, or its own run of keys
// (the unfinished block and the chunk up to the query).
//
// A group of threads goes along a key together, a unit of its coordinates each, so that what they read is one piece of
// memory. A key's offset is taken off the query instead of being put on the key: a thread's next key is GROUPS offsets
// further, and so its unit of the query is turned by the same angles each time.
//
// A record of the result: the sum of values by weights, then the largest score of the outer softmax and its sum of
// weights, then the scores of the landmarks, or NOTHING.

const GROUPS: u32 = WORKGROUP / UNITS;
const SPLIT: u32 = WORKGROUP / QUADS;
// Threads that make weights of one block's scores.
const TEAM: u32 = 16u;
const TEAMS: u32 = WORKGROUP / TEAM;
// Keys scored at a time, and the distance of their parts of scores, against bank conflicts.
const KEYS: u32 = 1024u / UNITS;
const PITCH: u32 = KEYS + 2u;

var<workgroup> sums: array<f32, UNITS * PITCH>;
var<workgroup> scores: array<f32, SCORES>;
var<workgroup> tops: array<vec4<f32>, WORKGROUP / 4u>;
var<workgroup> totals: array<vec4<f32>, WORKGROUP / 4u>;
// Of each block the score that it has in the outer softmax, and its sum of weights.
var<workgroup> closings: array<f32, BLOCKS>;
var<workgroup> inner_sums: array<f32, BLOCKS>;
var<workgroup> parts: array<vec4<f32>, WORKGROUP>;
var<workgroup> common_block: u32;

// e to a power that is never positive.
fn decay(x: f32) -> f32 {
    return exp(max(x, -87.0));
}

// Angles that take a row of the table off.
fn back(row: u32, unit: u32) -> Angles {
    let at = 2u * (row * UNITS + unit);
    return Angles(-angles[at], angles[at + 1u]);
}

fn add_up(to: u32, count: u32, thread: u32) {
    workgroupBarrier();
    for (var key = thread; key < count; key += WORKGROUP) {
        var four = vec4<f32>(0.0);
        for (var unit = 0u; unit < UNITS; unit += 4u) {
            let at = unit * PITCH + key;
            four.x += sums[at];
            if (unit + 1u < UNITS) {
                four.y += sums[at + PITCH];
            }
            if (unit + 2u < UNITS) {
                four.z += sums[at + 2u * PITCH];
            }
            if (unit + 3u < UNITS) {
                four.w += sums[at + 3u * PITCH];
            }
        }
        scores[to + key] = sum4(four) * params.scale;
    }
    workgroupBarrier();
}

fn note(key: u32, count: u32, unit: u32, q: Pairs, k: Pairs) {
    if (key < count) {
        sums[unit * PITCH + key] = dot(q.a, k.a) + dot(q.b, k.b);
    }
}

// Scores of the first `count` keys of a page, by a query that its slot is taken off.
fn score_page(page: u32, count: u32, query: Pairs, to: u32, thread: u32) {
    let unit = thread % UNITS;
    let step = back(min(GROUPS, params.block - 1u), unit);
    for (var first = 0u; first < count; first += KEYS) {
        let here = min(KEYS, count - first);
        let group = thread / UNITS;
        if (group < GROUPS && group < here) {
            let e = page + first * HEAD;
            var q0 = turn(query, back(first + group, unit));
            for (var key = group; key < here; key += 4u * GROUPS) {
                let k0 = keys_pairs(e + key * HEAD, unit);
                let k1 = keys_pairs(e + min(key + GROUPS, here - 1u) * HEAD, unit);
                let k2 = keys_pairs(e + min(key + 2u * GROUPS, here - 1u) * HEAD, unit);
                let k3 = keys_pairs(e + min(key + 3u * GROUPS, here - 1u) * HEAD, unit);
                let q1 = turn(q0, step);
                let q2 = turn(q1, step);
                let q3 = turn(q2, step);
                note(key, here, unit, q0, k0);
                note(key + GROUPS, here, unit, q1, k1);
                note(key + 2u * GROUPS, here, unit, q2, k2);
                note(key + 3u * GROUPS, here, unit, q3, k3);
                q0 = turn(q3, step);
            }
        }
        add_up(to + first, here, thread);
    }
}

// Scores of the first `count` keys of the chunk, which have their positions.
fn score_chunk(k: u32, count: u32, query: Pairs, to: u32, thread: u32) {
    let unit = thread % UNITS;
    for (var first = 0u; first < count; first += KEYS) {
        let here = min(KEYS, count - first);
        if (thread < GROUPS * UNITS) {
            for (var key = thread / UNITS; key < here; key += GROUPS) {
                note(key, here, unit, query, k_pairs(k + (first + key) * params.k_cols, unit));
            }
        }
        add_up(to + first, here, thread);
    }
}

// The weighted values of keys `first .. end` of a page, key i by weight `weights` + i: this thread's part.
fn page_values(page: u32, weights: u32, first: u32, end: u32, thread: u32) -> vec4<f32> {
    let column = 4u * (thread % QUADS);
    let valid = valid_of(column, HEAD);
    let e = page + column;
    var sum = vec4<f32>(0.0);
    for (var i = first + thread / QUADS; i < end; i += 4u * SPLIT) {
        let i1 = min(i + SPLIT, end - 1u);
        let i2 = min(i + 2u * SPLIT, end - 1u);
        let i3 = min(i + 3u * SPLIT, end - 1u);
        let v0 = values_quad(e + i * HEAD, valid);
        let v1 = values_quad(e + i1 * HEAD, valid);
        let v2 = values_quad(e + i2 * HEAD, valid);
        let v3 = values_quad(e + i3 * HEAD, valid);
        sum += scores[weights + i] * v0;
        sum += select(0.0, scores[weights + i1], i + SPLIT < end) * v1;
        sum += select(0.0, scores[weights + i2], i + 2u * SPLIT < end) * v2;
        sum += select(0.0, scores[weights + i3], i + 3u * SPLIT < end) * v3;
    }
    return sum;
}

// The block of one of this workgroup's slots; with CHOOSES it has one, and found it itself.
fn slot_block(choice: u32, i: u32, found: u32) -> u32 {
    if (CHOOSES) {
        return found;
    }
    return chosen_at(choice + i);
}

fn work(group: vec3<u32>, groups: vec3<u32>, thread: u32) {
    let task = group_index(group, groups);
    let heads = params.held * params.share;
    let item = task % params.items;
    let t = params.first_row + task / params.items % params.row_count;
    let head = task / params.items / params.row_count % heads;
    let b = task / params.items / params.row_count / heads;
    if (b >= params.batch) {
        return;
    }
    let h = params.first_head * params.share + head;
    let state = state_of(lengths_at(b));
    let kv = h / params.share;
    let held = kv - params.first_head;
    let ring = b * (params.blocks + 1u) * params.held + held;
    let is_own = OWN && item + 1u == params.items;
    let choice = ((b * params.heads + h) * params.rows + t) * params.top_k + item * SLOTS;
    let own = state.unfinished + t;
    let own_page = (ring + state.seen % (params.blocks + 1u) * params.held) * params.block * HEAD;
    let query = q_pairs((b * params.rows + t) * params.q_cols + params.q_start + h * HEAD, thread % UNITS);

    var found = NO_BLOCK;
    if (CHOOSES) {
        var one = NO_BLOCK;
        if (!is_own) {
            one = block_of_slot((b * params.heads + h) * params.rows + t, item, b, t);
        }
        if (thread == 0u) {
            common_block = one;
        }
        found = workgroupUniformLoad(&common_block);
    }

    // Where a run's keys in the ring are, page by page: one for each block, or the unfinished one.
    var blocks = min(SLOTS, max(state.retrieved, item * SLOTS) - item * SLOTS);
    var pages = blocks;
    var count = params.block;
    if (is_own) {
        blocks = own / params.block + 1u;
        pages = 1u;
        count = state.unfinished;
    }
    for (var i = 0u; i < pages; i++) {
        var slot = select(state.retrieved + 1u, min(state.seen, params.top_k + 1u), BLOCKS_SEEN);
        var page = own_page;
        if (!is_own) {
            let j = slot_block(choice, i, found);
            if (j == NO_BLOCK) {
                continue;
            }
            slot = item * SLOTS + i + select(0u, 1u, stingy_index(state, j) > 0u);
            page = (ring + slot_of(state, j) * params.held) * params.block * HEAD;
        }
        let turned = turn(query, back(params.block + slot, thread % UNITS));
        score_page(page, count, turned, i * params.block, thread);
    }
    if (is_own) {
        let k = b * params.rows * params.k_cols + params.k_start + kv * HEAD;
        score_chunk(k, t + 1u, query, state.unfinished, thread);
    }

    // Weights within each block, and what it is in the outer softmax: its landmark, or, if the query's own, itself.
    for (var first = 0u; first < blocks; first += TEAMS) {
        let i = first + thread / TEAM;
        let start = i * params.block;
        let is_last = is_own && i + 1u == blocks;
        var members = 0u;
        if (i < blocks) {
            members = params.block - 1u;
            if (is_last) {
                members = min(members, own + 1u - start);
            } else if (!is_own && slot_block(choice, i, found) == NO_BLOCK) {
                members = 0u;
            }
        }
        var top = NOTHING;
        for (var at = thread % TEAM; at < members; at += TEAM) {
            top = max(top, scores[start + at]);
        }
        tops[thread / 4u][thread % 4u] = top;
        workgroupBarrier();
        let team = thread / TEAM * (TEAM / 4u);
        let most = max(max(tops[team], tops[team + 1u]), max(tops[team + 2u], tops[team + 3u]));
        top = max(max(most.x, most.y), max(most.z, most.w));
        var total = 0.0;
        for (var at = thread % TEAM; at < members; at += TEAM) {
            let weight = decay(scores[start + at] - top);
            scores[start + at] = weight;
            total += weight;
        }
        totals[thread / 4u][thread % 4u] = total;
        workgroupBarrier();
        if (i < blocks && thread % TEAM == 0u) {
            total = sum4((totals[team] + totals[team + 1u]) + (totals[team + 2u] + totals[team + 3u]));
            var closing = top;
            if (!is_own) {
                closing = NOTHING;
                if (slot_block(choice, i, found) != NO_BLOCK) {
                    closing = scores[start + params.block - 1u];
                }
            } else if (!is_last) {
                closing = scores[start + params.block - 1u];
            }
            closings[i] = closing;
            inner_sums[i] = total;
        }
    }
    workgroupBarrier();

    var top = NOTHING;
    for (var i = 0u; i < blocks; i++) {
        top = max(top, closings[i]);
    }
    var sum = 0.0;
    var result = vec4<f32>(0.0);
    for (var i = 0u; i < blocks; i++) {
        let closing = closings[i];
        if (closing == NOTHING) {
            continue;
        }
        let start = i * params.block;
        let share = decay(closing - top);
        let inner_sum = inner_sums[i];
        let is_last = is_own && i + 1u == blocks;
        sum += share * select(1.0, inner_sum, is_last);
        if (thread >= QUADS * SPLIT || inner_sum == 0.0) {
            continue;
        }
        // The own run's members in the ring, then those in the chunk.
        var page = own_page;
        var begin = start;
        var between = params.block - 1u;
        if (is_own) {
            between = clamp(state.unfinished, start, start + params.block - 1u);
        } else {
            page = (ring + slot_of(state, slot_block(choice, i, found)) * params.held) * params.block * HEAD;
            begin = 0u;
        }
        var inner = page_values(page, start - begin, begin, between, thread);
        if (is_own) {
            let column = 4u * (thread % QUADS);
            let v = b * params.rows * params.v_cols + params.v_start + kv * HEAD + column;
            for (var at = between + thread / QUADS; at < min(start + params.block - 1u, own + 1u); at += SPLIT) {
                inner += scores[at] * v_quad(v + (at - state.unfinished) * params.v_cols, valid_of(column, HEAD));
            }
        }
        result += share / select(inner_sum, 1.0, is_last) * inner;
    }
    parts[thread] = result;
    workgroupBarrier();
    let record = task * RECORD;
    if (thread < QUADS) {
        for (var i = thread + QUADS; i < QUADS * SPLIT; i += QUADS) {
            result += parts[i];
        }
        records[record + thread] = result;
    }
    if (thread == 0u) {
        records[record + QUADS] = vec4<f32>(top, sum, 0.0, 0.0);
    }
    for (var i = thread; i < SLOTS; i += WORKGROUP) {
        records[record + QUADS + 1u + i / 4u][i % 4u] = select(NOTHING, closings[min(i, BLOCKS - 1u)], i < blocks);
    }
}
