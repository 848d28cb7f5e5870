// Grouped softmax attention of 32 queries of one head over their own run of keys, the unfinished block and the chunk,
// joined with what they retrieved (`block_results.wgsl`).
//
// Keys come in tiles of whole blocks. Scores are made as a product of matrices, 32 coordinates at a time through
// workgroup memory, 4 x 4 of them a thread; weights pass through the same memory, and the result stays in registers. A
// vector in memory is four queries, y + 8j, or four keys, x + 16j; rows of the tiles are padded against bank conflicts.

const QUERIES: u32 = 32u;
const KEYS: u32 = 64u / BLOCK * BLOCK;
// Units of a slice, which has 8 rows for each.
const DEPTH: u32 = 4u;
const Q_PITCH: u32 = 9u;
const K_PITCH: u32 = 17u;
const K_TILE: u32 = 8u * DEPTH * Q_PITCH;
// Vectors of the result, a query and thread.
const COLS: u32 = (QUADS + 15u) / 16u;

// Queries and keys of a slice, or weights: key after key, the queries of each.
var<workgroup> tile: array<vec4<f32>, K_TILE + 8u * DEPTH * K_PITCH>;
var<workgroup> tops: array<f32, 128>;
var<workgroup> totals: array<f32, 128>;
// Of each query what the tile leaves of the result before it; in the end, largest score and sum.
var<workgroup> factors: array<f32, QUERIES>;
var<workgroup> states: array<vec2<f32>, QUERIES>;

// e to a power that is never positive.
fn decay(x: f32) -> f32 {
    return exp(max(x, -87.0));
}

fn put(at: u32, pitch: u32, x0: Pairs, x1: Pairs, x2: Pairs, x3: Pairs) {
    for (var i = 0u; i < 4u; i++) {
        tile[at + i * DEPTH * pitch] = vec4<f32>(x0.a[i], x1.a[i], x2.a[i], x3.a[i]);
        tile[at + (4u + i) * DEPTH * pitch] = vec4<f32>(x0.b[i], x1.b[i], x2.b[i], x3.b[i]);
    }
}

// What the loads of a workgroup share.
struct Places {
    q: u32,
    k: u32,
    page: u32,
    unfinished: u32,
    // Position of the unfinished block.
    origin: u32,
    // The last query, and the last key of the run.
    last_row: u32,
    last_key: u32,
}

fn query_unit(at: Places, t: u32, unit: u32) -> Pairs {
    if (unit >= UNITS) {
        return Pairs(vec4<f32>(0.0), vec4<f32>(0.0));
    }
    return q_pairs(at.q + min(t, at.last_row) * params.q_cols, unit);
}

fn key_unit(at: Places, key: u32, unit: u32) -> Pairs {
    if (unit >= UNITS) {
        return Pairs(vec4<f32>(0.0), vec4<f32>(0.0));
    }
    let r = min(key, at.last_key);
    if (r < at.unfinished) {
        return turn(keys_pairs(at.page + r * HEAD, unit), unit_angles(f32(at.origin + r), unit));
    }
    return k_pairs(at.k + (r - at.unfinished) * params.k_cols, unit);
}

// This key and the next three; behind the last one, the last one again.
fn four(key: u32, end: u32) -> vec4<u32> {
    return min(vec4<u32>(key, key + 1u, key + 2u, key + 3u), vec4<u32>(end - 1u));
}

// Their weights, a column for each query y + 8j; none from `end` on.
fn weights(key: u32, end: u32, y: u32) -> mat4x4<f32> {
    let at = key * Q_PITCH + y;
    let none = vec4<f32>(0.0);
    return transpose(mat4x4<f32>(
        tile[at],
        select(none, tile[at + Q_PITCH], key + 1u < end),
        select(none, tile[at + 2u * Q_PITCH], key + 2u < end),
        select(none, tile[at + 3u * Q_PITCH], key + 3u < end),
    ));
}

// Four coordinates of four values.
fn page_values(e: vec4<u32>, column: u32) -> mat4x4<f32> {
    let quad = min(column, QUADS - 1u);
    let at = e + 4u * quad;
    let valid = valid_of(4u * quad, HEAD);
    return mat4x4<f32>(
        values_quad(at.x, valid), values_quad(at.y, valid), values_quad(at.z, valid), values_quad(at.w, valid));
}

fn chunk_values(e: vec4<u32>, column: u32) -> mat4x4<f32> {
    let quad = min(column, QUADS - 1u);
    let at = e + 4u * quad;
    let valid = valid_of(4u * quad, HEAD);
    return mat4x4<f32>(v_quad(at.x, valid), v_quad(at.y, valid), v_quad(at.z, valid), v_quad(at.w, valid));
}

fn scaled(m: mat4x4<f32>, by: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(by.x * m[0], by.y * m[1], by.z * m[2], by.w * m[3]);
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let heads = params.held * params.share;
    let b = group.z;
    let h = params.first_head * params.share + group.y;
    let kv = h / params.share;
    let end_row = params.first_row + params.row_count;
    // The longest runs first.
    let first = params.first_row + (groups.x - 1u - group.x) * QUERIES;
    let state = state_of(lengths_at(b));
    let ring = (b * (params.blocks + 1u) + state.seen % (params.blocks + 1u)) * params.held + kv - params.first_head;
    let before = select(state.retrieved + 1u, min(state.seen, params.top_k + 1u), BLOCKS_SEEN);
    let last_row = min(first + QUERIES, end_row) - 1u;
    let at = Places(
        b * params.rows * params.q_cols + params.q_start + h * HEAD,
        b * params.rows * params.k_cols + params.k_start + kv * HEAD,
        ring * BLOCK * HEAD,
        state.unfinished,
        before * BLOCK,
        last_row,
        state.unfinished + last_row,
    );
    let v = b * params.rows * params.v_cols + params.v_start + kv * HEAD;
    let x = thread % 16u;
    let y = thread / 16u;
    // In the softmax four threads share a query.
    let query = thread % QUERIES;
    let quarter = thread / QUERIES;
    let row = query % 8u;
    let part = query / 8u;
    let own = state.unfinished + first + query;
    var outer_max = NOTHING;
    var outer_sum = 0.0;
    // A column for each query, its rows four coordinates: those from 4x, from 64 + 4x, and so on.
    var r0 = mat4x4<f32>();
    var r1 = mat4x4<f32>();
    var r2 = mat4x4<f32>();
    var r3 = mat4x4<f32>();

    for (var start = 0u; start <= at.last_key; start += KEYS) {
        // A column for each key, its rows the queries.
        var scores = mat4x4<f32>();
        for (var slice = 0u; slice < UNITS; slice += DEPTH) {
            workgroupBarrier();
            let line = thread / DEPTH;
            let unit = slice + thread % DEPTH;
            if (line < 16u) {
                let key = start + line;
                put(K_TILE + thread % DEPTH * K_PITCH + line, K_PITCH, key_unit(at, key, unit),
                    key_unit(at, key + 16u, unit), key_unit(at, key + 32u, unit), key_unit(at, key + 48u, unit));
            } else if (line < 24u) {
                let t = first + line - 16u;
                put(thread % DEPTH * Q_PITCH + line - 16u, Q_PITCH, query_unit(at, t, unit),
                    query_unit(at, t + 8u, unit), query_unit(at, t + 16u, unit), query_unit(at, t + 24u, unit));
            }
            workgroupBarrier();
            for (var i = 0u; i < 8u * DEPTH; i += 4u) {
                let q = i * Q_PITCH + y;
                let k = K_TILE + i * K_PITCH + x;
                scores += mat4x4<f32>(tile[q], tile[q + Q_PITCH], tile[q + 2u * Q_PITCH], tile[q + 3u * Q_PITCH])
                    * transpose(mat4x4<f32>(tile[k], tile[k + K_PITCH], tile[k + 2u * K_PITCH], tile[k + 3u * K_PITCH]));
            }
        }
        workgroupBarrier();
        tile[x * Q_PITCH + y] = params.scale * scores[0];
        tile[(x + 16u) * Q_PITCH + y] = params.scale * scores[1];
        tile[(x + 32u) * Q_PITCH + y] = params.scale * scores[2];
        tile[(x + 48u) * Q_PITCH + y] = params.scale * scores[3];
        workgroupBarrier();

        // Scores become weights in the outer softmax, as far as it is known.
        var left = 1.0;
        for (var block = 0u; block < KEYS; block += BLOCK) {
            let begin = start + block;
            let is_closed = own >= begin + BLOCK;
            let members = min(max(own + 1u, begin) - begin, BLOCK - 1u);
            let landmark = tile[(block + BLOCK - 1u) * Q_PITCH + row][part];
            var top = NOTHING;
            for (var i = quarter; i < members; i += 4u) {
                top = max(top, tile[(block + i) * Q_PITCH + row][part]);
            }
            tops[thread] = top;
            workgroupBarrier();
            top = max(max(tops[query], tops[query + 32u]), max(tops[query + 64u], tops[query + 96u]));
            var total = 0.0;
            for (var i = quarter; i < members; i += 4u) {
                let weight = decay(tile[(block + i) * Q_PITCH + row][part] - top);
                tile[(block + i) * Q_PITCH + row][part] = weight;
                total += weight;
            }
            totals[thread] = total;
            workgroupBarrier();
            total = (totals[query] + totals[query + 32u]) + (totals[query + 64u] + totals[query + 96u]);
            var scale = 0.0;
            if (is_closed || members > 0u) {
                let closing = select(top, landmark, is_closed);
                let far = max(outer_max, closing);
                let factor = decay(outer_max - far);
                let share = decay(closing - far);
                outer_sum = factor * outer_sum + share * select(total, 1.0, is_closed);
                outer_max = far;
                left *= factor;
                if (total > 0.0) {
                    scale = share / select(1.0, total, is_closed);
                }
                for (var earlier = 0u; earlier < block; earlier += BLOCK) {
                    for (var i = quarter; i < BLOCK; i += 4u) {
                        tile[(earlier + i) * Q_PITCH + row][part] *= factor;
                    }
                }
            }
            for (var i = quarter; i < BLOCK; i += 4u) {
                let weight = tile[(block + i) * Q_PITCH + row][part];
                tile[(block + i) * Q_PITCH + row][part] = select(0.0, scale * weight, i < members);
            }
        }
        if (quarter == 0u) {
            factors[query] = left;
        }
        workgroupBarrier();

        let factor = vec4<f32>(factors[y], factors[y + 8u], factors[y + 16u], factors[y + 24u]);
        r0 = scaled(r0, factor);
        r1 = scaled(r1, factor);
        r2 = scaled(r2, factor);
        r3 = scaled(r3, factor);
        let end = min(start + KEYS, at.last_key + 1u);
        let between = clamp(state.unfinished, start, end);
        for (var key = start; key < between; key += 4u) {
            let weight = weights(key - start, between - start, y);
            let e = at.page + four(key, between) * HEAD;
            r0 += page_values(e, x) * weight;
            if (COLS > 1u) {
                r1 += page_values(e, x + 16u) * weight;
            }
            if (COLS > 2u) {
                r2 += page_values(e, x + 32u) * weight;
            }
            if (COLS > 3u) {
                r3 += page_values(e, x + 48u) * weight;
            }
        }
        for (var key = between; key < end; key += 4u) {
            let weight = weights(key - start, end - start, y);
            let e = v + (four(key, end) - state.unfinished) * params.v_cols;
            r0 += chunk_values(e, x) * weight;
            if (COLS > 1u) {
                r1 += chunk_values(e, x + 16u) * weight;
            }
            if (COLS > 2u) {
                r2 += chunk_values(e, x + 32u) * weight;
            }
            if (COLS > 3u) {
                r3 += chunk_values(e, x + 48u) * weight;
            }
        }
    }

    if (quarter == 0u) {
        states[query] = vec2<f32>(outer_max, outer_sum);
    }
    workgroupBarrier();
    for (var j = 0u; j < 4u; j++) {
        let t = first + y + 8u * j;
        if (t > last_row) {
            continue;
        }
        let own_state = states[y + 8u * j];
        let records_at = ((b * heads + group.y) * params.row_count + t - params.first_row) * params.items * RECORD;
        var top = own_state.x;
        for (var item = 0u; item < params.items; item++) {
            top = max(top, records[records_at + item * RECORD + QUADS].x);
        }
        let own_share = decay(own_state.x - top);
        var sum = own_share * own_state.y;
        for (var item = 0u; item < params.items; item++) {
            let head = records[records_at + item * RECORD + QUADS];
            sum += decay(head.x - top) * head.y;
        }
        let over = select(0.0, 1.0 / sum, sum > 0.0);
        // The column of this query.
        let mine = vec4<f32>(vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(j));
        let result = mat4x4<f32>(r0 * mine, r1 * mine, r2 * mine, r3 * mine);
        for (var c = 0u; c < COLS; c++) {
            let quad = x + 16u * c;
            if (quad < QUADS) {
                var whole = own_share * (result * vec4<f32>(vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(c)));
                for (var item = 0u; item < params.items; item++) {
                    let record = records_at + item * RECORD;
                    whole += decay(records[record + QUADS].x - top) * records[record + quad];
                }
                let e = ((b * params.rows + t) * params.heads + h) * HEAD + 4u * quad;
                out_put(e, over * whole, valid_of(4u * quad, HEAD));
            }
        }
        for (var slot = x; slot < params.top_k; slot += 16u) {
            let i = slot % SLOTS;
            let closing = records[records_at + slot / SLOTS * RECORD + QUADS + 1u + i / 4u][i % 4u];
            let share = select(0.0, decay(closing - top) * over, closing > NOTHING);
            shares_put_one(((b * params.heads + h) * params.rows + t) * params.top_k + slot, share);
        }
    }
}
