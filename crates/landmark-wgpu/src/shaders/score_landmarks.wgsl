// The same as `landmark_scores.wgsl` for many queries on matrix units: a workgroup scores a tile of them against all cached
// blocks, a tile of landmarks at a time. Queries that the old blocks' position is taken off, and landmarks with a turn of
// their own, are rounded to f16.

struct Places {
    q: u32,
    landmarks: u32,
    out: u32,
}

fn query_pairs(q: u32, t: u32, by: Angles, unit: u32) -> Pairs {
    return turn(q_pairs(q + min(t, params.tokens - 1u) * params.q_cols, unit), by);
}

fn landmark_pairs(at: Places, state: State, row: u32, unit: u32) -> Pairs {
    let j = min(row, state.cached - 1u);
    let pairs = landmarks_pairs(at.landmarks + slot_of(state, j) * HEAD, unit);
    let index = stingy_index(state, j);
    if (index == 0u) {
        return pairs;
    }
    return turn(pairs, unit_angles(f32(index * params.block), unit));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    lane = thread & 31u;
    let h = group.y;
    let b = group.z;
    let state = state_of(lengths_at(b));
    if (state.cached == 0u) {
        return;
    }
    let first = group.x * QUERIES;
    let at = Places(
        (b * (params.skip + params.tokens) + params.skip) * params.q_cols + params.q_start + h * HEAD,
        (b * params.kv_heads + h / params.share) * (params.blocks + 1u) * HEAD,
        ((b * params.heads + h) * params.tokens + first) * params.blocks,
    );
    let unit = thread % UNITS;
    let line = thread / UNITS;
    let by = unit_angles(-f32(params.block - 1u), unit);
    for (var row = line; row < QUERIES; row += 4u * LINES) {
        let x0 = query_pairs(at.q, first + row, by, unit);
        let x1 = query_pairs(at.q, first + row + LINES, by, unit);
        let x2 = query_pairs(at.q, first + row + 2u * LINES, by, unit);
        let x3 = query_pairs(at.q, first + row + 3u * LINES, by, unit);
        put_pairs(row, unit, x0);
        put_pairs(row + LINES, unit, x1);
        put_pairs(row + 2u * LINES, unit, x2);
        put_pairs(row + 3u * LINES, unit, x3);
    }
    workgroupBarrier();
    let subgroup = thread >> 5u;
    let q = 16u * subgroup * PITCH;
    let q0 = left_of_tile(q);
    let q1 = left_of_tile(q + 4u);
    let q2 = left_of_tile(q + 8u);
    let q3 = left_of_tile(q + 12u);
    let q4 = left_of_tile(q + 16u % QUADS);
    let q5 = left_of_tile(q + 20u % QUADS);
    let q6 = left_of_tile(q + 24u % QUADS);
    let q7 = left_of_tile(q + 28u % QUADS);
    for (var j = 0u; j < state.cached; j += ROWS) {
        workgroupBarrier();
        for (var row = line; row < ROWS; row += 4u * LINES) {
            let k0 = landmark_pairs(at, state, j + row, unit);
            let k1 = landmark_pairs(at, state, j + row + LINES, unit);
            let k2 = landmark_pairs(at, state, j + row + 2u * LINES, unit);
            let k3 = landmark_pairs(at, state, j + row + 3u * LINES, unit);
            put_pairs(row, unit, k0);
            put_pairs(row + LINES, unit, k1);
            put_pairs(row + 2u * LINES, unit, k2);
            put_pairs(row + 3u * LINES, unit, k3);
        }
        workgroupBarrier();
        score(16u * subgroup * ROW_PITCH, q0, q1, q2, q3, q4, q5, q6, q7);
        workgroupBarrier();
        for (var i = thread; i < QUERIES * ROWS / 4u; i += THREADS) {
            let row = i / (ROWS / 4u);
            let quad = i % (ROWS / 4u);
            let block = j + 4u * quad;
            if (first + row < params.tokens && block < state.cached) {
                let four = params.scale * scores[row * ROW_PITCH + quad];
                out_put(at.out + row * params.blocks + block, four, valid_of(block, params.blocks));
            }
        }
    }
}
