// Grouped softmax attention over [retrieved blocks, unfinished block, chunk] of one query by one workgroup.
//
// A key's position inside its block is applied to the key, from a table; the position of the block's slot is taken
// off the query instead, so that there is one table however many slots there are.

// The query as it is, and turned back by the slot of the block at hand.
var<workgroup> query: array<Pairs, UNITS>;
var<workgroup> turned: array<Pairs, UNITS>;
var<workgroup> token_score: f32;
// Scores of the landmarks of the retrieved blocks.
var<workgroup> closing: array<f32, TOP_K>;

fn turn_query(position: u32, thread: u32) {
    if (thread < UNITS) {
        turned[thread] = turn(query[thread], unit_angles(-f32(position), thread));
    }
    workgroupBarrier();
}

// Score of the key at element `key` of the ring, at offset `offset` of its block.
fn ring_score(key: u32, offset: u32) -> f32 {
    var score = 0.0;
    for (var unit = 0u; unit < UNITS; unit++) {
        let at = 2u * (offset * UNITS + unit);
        score += dot_turned(turned[unit], keys_pairs(key, unit), Angles(angles[at], angles[at + 1u]));
    }
    return score * params.scale;
}

// Score of the key at element `key` of the chunk.
fn chunk_score(key: u32) -> f32 {
    var score = 0.0;
    for (var unit = 0u; unit < UNITS; unit++) {
        let k = k_pairs(key, unit);
        score += dot(query[unit].a, k.a) + dot(query[unit].b, k.b);
    }
    return score * params.scale;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let task = group_index(group, groups);
    let heads = params.held * params.share;
    if (task >= params.batch * heads * params.rows) {
        return;
    }
    let t = task % params.rows;
    // Of the heads whose keys lie in this piece of the rings.
    let h = params.first_head * params.share + task / params.rows % heads;
    let b = task / params.rows / heads;
    let skip = select(0u, 1u, MISS);
    let state = state_of(lengths_at(b));
    let kv = h / params.share;
    let held = kv - params.first_head;
    let q = (b * params.rows + t) * params.q_cols + params.q_start + h * HEAD;
    let k = b * params.rows * params.k_cols + params.k_start + kv * HEAD;
    let v = b * params.rows * params.v_cols + params.v_start + kv * HEAD;
    if (thread < UNITS) {
        query[thread] = q_pairs(q, thread);
    }
    workgroupBarrier();
    begin_query();
    var miss = 0.0;
    if (MISS) {
        if (thread == 0u) {
            token_score = chunk_score(k);
        }
        workgroupBarrier();
        miss = token_score;
        admit_miss(miss);
    }
    let is_token = MISS && t == 0u;
    let column = thread % QUADS;
    let valid = valid_of(4u * column, HEAD);
    let choice = ((b * params.heads + h) * (params.rows - skip) + t - skip) * params.top_k;

    // Blocks that the query chose.
    let retrieved = select(select(0u, state.retrieved, RETRIEVES), 0u, is_token);
    for (var slot = 0u; slot < retrieved; slot++) {
        let j = chosen_at(choice + slot);
        if (j == NO_BLOCK) {
            continue;
        }
        let later = select(0u, 1u, stingy_index(state, j) > 0u);
        turn_query((slot + later) * params.block, thread);
        let page = ((b * (params.blocks + 1u) + slot_of(state, j)) * params.held + held) * params.block * HEAD;
        for (var first = 0u; first < params.block; first += WORKGROUP) {
            let count = min(WORKGROUP, params.block - first);
            let offset = first + thread;
            var score = 0.0;
            if (thread < count) {
                score = ring_score(page + offset * HEAD, offset);
            }
            if (offset + 1u == params.block) {
                landmark_score = score;
                closing[slot] = score;
            }
            tile_weights(score, thread < count && offset + 1u < params.block, count, thread);
            if (thread < QUADS * SPLIT) {
                for (var i = thread / QUADS; i < count; i += SPLIT) {
                    inner += weights[i] * values_quad(page + (first + i) * HEAD + 4u * column, valid);
                }
            }
            workgroupBarrier();
        }
        close_block(landmark_score, MISS);
        // Before anybody writes the next landmark's score, or turns the query anew.
        workgroupBarrier();
    }

    // The unfinished block and the chunk up to the query, block by block.
    let page = ((b * (params.blocks + 1u) + state.seen % (params.blocks + 1u)) * params.held + held) * params.block * HEAD;
    if (state.unfinished > 0u) {
        let blocks_before = select(state.retrieved + 1u, min(state.seen, params.top_k + 1u), BLOCKS_SEEN);
        turn_query(blocks_before * params.block, thread);
    }
    let own = state.unfinished + t - skip;
    var start = 0u;
    while (!is_token && start <= own) {
        let far = min(own + 1u, start + WORKGROUP);
        let landmark = min(far, start + params.block - 1u - start % params.block);
        let count = landmark - start;
        let r = start + thread;
        var score = 0.0;
        if (thread < count || (thread == count && landmark < far)) {
            if (r < state.unfinished) {
                score = ring_score(page + r * HEAD, r);
            } else {
                score = chunk_score(k + (skip + r - state.unfinished) * params.k_cols);
            }
        }
        if (thread == count) {
            landmark_score = score;
        }
        tile_weights(score, thread < count, count, thread);
        if (thread < QUADS * SPLIT) {
            for (var i = thread / QUADS; i < count; i += SPLIT) {
                let key = start + i;
                if (key < state.unfinished) {
                    inner += weights[i] * values_quad(page + key * HEAD + 4u * column, valid);
                } else {
                    let e = v + (skip + key - state.unfinished) * params.v_cols + 4u * column;
                    inner += weights[i] * v_quad(e, valid);
                }
            }
        }
        let score_of_landmark = landmark_score;
        workgroupBarrier();
        start = landmark;
        if (landmark < far) {
            if (landmark < own) {
                close_block(score_of_landmark, false);
            }
            start = landmark + 1u;
        }
    }
    close_own_block();

    var result = vec4<f32>(0.0);
    var gate = 1.0;
    if (outer_sum > 0.0 && !is_token) {
        result = outer / outer_sum;
        if (MISS) {
            gate = miss_share(miss, params.cutoff);
            if (gated_sum > 0.0) {
                result += gate * gated / gated_sum;
            }
        }
    }
    let whole = combine_parts(result, thread);
    if (thread < QUADS) {
        let e = (b * params.rows + t) * params.heads * HEAD + h * HEAD + 4u * thread;
        out_put(e, whole, valid_of(4u * thread, HEAD));
    }
    // Shares of the blocks that were chosen.
    if (!is_token) {
        for (var slot = thread; slot < params.top_k; slot += WORKGROUP) {
            var share = 0.0;
            if (slot < retrieved && chosen_at(choice + slot) != NO_BLOCK) {
                if (MISS) {
                    share = gate * decay(closing[slot] - gated_max) / gated_sum;
                } else {
                    share = decay(closing[slot] - outer_max) / outer_sum;
                }
            }
            shares_put_one(choice + slot, share);
        }
    }
}
