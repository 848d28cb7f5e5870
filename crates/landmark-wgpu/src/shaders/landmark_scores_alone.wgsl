// The same as `landmark_scores.wgsl` by threads that work alone: each scores 8 queries of a head against 8 blocks.

// Angles of a row of the table.
fn of_row(row: u32, unit: u32) -> Angles {
    let at = 2u * (row * UNITS + unit);
    return Angles(angles[at], angles[at + 1u]);
}

// The query that the old blocks' position is taken off.
fn query_unit(q: u32, t: u32, by: Angles, unit: u32) -> Pairs {
    return turn(q_pairs(q + min(t, params.tokens - 1u) * params.q_cols, unit), Angles(-by.sin, by.cos));
}

fn landmark_unit(ring: u32, state: State, j: u32, unit: u32) -> Pairs {
    return landmarks_pairs(ring + slot_of(state, min(j, state.cached - 1u)) * HEAD, unit);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let h = group.z % params.heads;
    let b = group.z / params.heads;
    let state = state_of(lengths_at(b));
    let i = group.x * WORKGROUP + thread;
    let across = (params.blocks + 7u) / 8u;
    let first = i % across * 8u;
    let t = i / across * 8u;
    let q = (b * (params.skip + params.tokens) + params.skip) * params.q_cols + params.q_start + h * HEAD;
    let ring = (b * params.kv_heads + h / params.share) * (params.blocks + 1u) * HEAD;
    let out = ((b * params.heads + h) * params.tokens + t) * params.blocks;
    let end = select(min(first + 8u, state.cached), first, first >= state.cached || t >= params.tokens);
    let rows = min(8u, max(params.tokens, t) - t);
    var upper_left = mat4x4<f32>();
    var upper_right = mat4x4<f32>();
    var lower_left = mat4x4<f32>();
    var lower_right = mat4x4<f32>();
    for (var unit = 0u; unit < select(0u, UNITS, first < end); unit++) {
        let by = of_row(params.block - 1u, unit);
        let upper = four(query_unit(q, t, by, unit), query_unit(q, t + 1u, by, unit),
            query_unit(q, t + 2u, by, unit), query_unit(q, t + 3u, by, unit));
        let lower = four(query_unit(q, t + 4u, by, unit), query_unit(q, t + 5u, by, unit),
            query_unit(q, t + 6u, by, unit), query_unit(q, t + 7u, by, unit));
        let left = four(landmark_unit(ring, state, first, unit), landmark_unit(ring, state, first + 1u, unit),
            landmark_unit(ring, state, first + 2u, unit), landmark_unit(ring, state, first + 3u, unit));
        let right = four(landmark_unit(ring, state, first + 4u, unit), landmark_unit(ring, state, first + 5u, unit),
            landmark_unit(ring, state, first + 6u, unit), landmark_unit(ring, state, first + 7u, unit));
        upper_left += products(upper, left);
        upper_right += products(upper, right);
        lower_left += products(lower, left);
        lower_right += products(lower, right);
    }
    put_tile(out + first, params.blocks, rows, end - first, upper_left, upper_right, lower_left, lower_right);
    // The last blocks have a turn of their own.
    for (var j = max(first, state.cached - state.retrieved); j < end; j++) {
        for (var row = 0u; row < rows; row++) {
            var score = 0.0;
            for (var unit = 0u; unit < UNITS; unit++) {
                let x = query_unit(q, t + row, of_row(params.block - 1u, unit), unit);
                let by = of_row(params.block + stingy_index(state, j), unit);
                score += dot_turned(x, landmark_unit(ring, state, j, unit), by);
            }
            out_put_one(out + row * params.blocks + j, params.scale * score);
        }
    }
}
