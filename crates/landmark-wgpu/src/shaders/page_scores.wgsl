// Scores of the keys of pages by threads that work alone: of the blocks that a query chose, and of the unfinished one. A
// thread makes 16 of them.
//
// A key's offset is taken off the query instead of being put on the key: from one key to the next the query is turned
// by the same angles.

// Angles that take a row of the table off.
fn back(row: u32, unit: u32) -> Angles {
    let at = 2u * (row * UNITS + unit);
    return Angles(-angles[at], angles[at + 1u]);
}

// The product with the key at element `e`; the query goes on to the next one.
fn score(query: ptr<function, Pairs>, step: Angles, e: u32, unit: u32) -> f32 {
    let x = *query;
    let key = keys_pairs(e, unit);
    *query = turn(x, step);
    return dot(x.a, key.a) + dot(x.b, key.b);
}

// The same with four keys, the last of which is again and again the one at `end`.
fn four_scores(query: ptr<function, Pairs>, step: Angles, e: u32, end: u32, unit: u32) -> vec4<f32> {
    let x = score(query, step, min(e, end), unit);
    let y = score(query, step, min(e + HEAD, end), unit);
    let z = score(query, step, min(e + 2u * HEAD, end), unit);
    let w = score(query, step, min(e + 3u * HEAD, end), unit);
    return vec4<f32>(x, y, z, w);
}

fn put_scores(at: u32, four: vec4<f32>, count: u32) {
    let scaled = params.scale * four;
    if (count > 0u) {
        scores[at] = scaled.x;
    }
    if (count > 1u) {
        scores[at + 1u] = scaled.y;
    }
    if (count > 2u) {
        scores[at + 2u] = scaled.z;
    }
    if (count > 3u) {
        scores[at + 3u] = scaled.w;
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = group_index(group, groups) * WORKGROUP + thread;
    let parts = (params.block + 15u) / 16u;
    let first = i % parts * 16u;
    let slot = i / parts % (params.slots + 1u);
    let row = row_of(i / parts / (params.slots + 1u));
    let state = state_of(lengths_at(row.b));
    let page = page_of(row, state, slot);
    let ends = select(page.keys, 0u, first >= page.keys);
    let q = (row.b * params.rows + row.t) * params.q_cols + params.q_start + row.h * HEAD;
    let e = page.at + first * HEAD;
    let end = page.at + (max(ends, 1u) - 1u) * HEAD;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    for (var unit = 0u; unit < select(0u, UNITS, ends > 0u); unit++) {
        let step = back(min(1u, params.block - 1u), unit);
        var query = turn(turn(q_pairs(q, unit), back(params.block + page.place, unit)), back(first, unit));
        s0 += four_scores(&query, step, e, end, unit);
        s1 += four_scores(&query, step, e + 4u * HEAD, end, unit);
        s2 += four_scores(&query, step, e + 8u * HEAD, end, unit);
        s3 += four_scores(&query, step, e + 12u * HEAD, end, unit);
    }
    let count = max(ends, first) - first;
    let at = row.scores + slot * params.block + first;
    put_scores(at, s0, count);
    put_scores(at + 4u, s1, max(count, 4u) - 4u);
    put_scores(at + 8u, s2, max(count, 8u) - 8u);
    put_scores(at + 12u, s3, max(count, 12u) - 12u);
}
