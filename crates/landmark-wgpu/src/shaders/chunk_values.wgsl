// Attention's result by threads that work alone: what queries get from pages (`page_values.wgsl`), and the values of the
// chunk by weights. A thread makes 8 coordinates of 8 queries.

// The sums of four rows from this one on, a column each.
fn four_sums(row: u32, end: u32, quad: u32) -> mat4x4<f32> {
    let at = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(end)) * QUADS + quad;
    return mat4x4<f32>(sums[at.x], sums[at.y], sums[at.z], sums[at.w]);
}

fn weights(at: u32) -> vec4<f32> {
    return vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
}

// Weights of four rows, those that begin here, for four keys: a column for each row.
fn four_weights(at: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(weights(at.x), weights(at.y), weights(at.z), weights(at.w));
}

// A vector of four values, a column each.
fn four_values(v: u32, key: u32, quad: u32) -> mat4x4<f32> {
    let keys = min(vec4<u32>(key, key + 1u, key + 2u, key + 3u), vec4<u32>(params.rows - 1u));
    let e = v + keys * params.v_cols + 4u * quad;
    let valid = valid_of(4u * quad, HEAD);
    return mat4x4<f32>(v_quad(e.x, valid), v_quad(e.y, valid), v_quad(e.z, valid), v_quad(e.w, valid));
}

fn put(row: Row, t: u32, quad: u32, left: vec4<f32>, right: vec4<f32>) {
    let e = ((row.b * params.rows + t) * params.heads + row.h) * HEAD + 4u * quad;
    if (row.is_there && t < params.first_row + params.row_count) {
        out_put(e, left, valid_of(4u * quad, HEAD));
        if (quad + 1u < QUADS) {
            out_put(e + 4u, right, valid_of(4u * quad + 4u, HEAD));
        }
    }
}

fn put_four(row: Row, t: u32, quad: u32, left: mat4x4<f32>, right: mat4x4<f32>) {
    put(row, t, quad, left[0], right[0]);
    put(row, t + 1u, quad, left[1], right[1]);
    put(row, t + 2u, quad, left[2], right[2]);
    put(row, t + 3u, quad, left[3], right[3]);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = group_index(group, groups) * WORKGROUP + thread;
    let parts = (QUADS + 1u) / 2u;
    let tiles = (params.row_count + 7u) / 8u;
    let quad = i % parts * 2u;
    let next = min(quad + 1u, QUADS - 1u);
    let first = i / parts % tiles * 8u;
    let number = i / parts / tiles * params.row_count + first;
    let row = row_of(number);
    let state = state_of(lengths_at(row.b));
    let v = row.b * params.rows * params.v_cols + params.v_start + row.h / params.share * HEAD;
    let others = min(7u, params.row_count - 1u - first);
    let end = number + others;
    var upper_left = four_sums(number, end, quad);
    var upper_right = four_sums(number, end, next);
    var lower_left = four_sums(number + 4u, end, quad);
    var lower_right = four_sums(number + 4u, end, next);
    let at = row.scores + params.slots * params.block + state.unfinished;
    let upper = at + min(vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(others)) * params.width;
    let lower = at + min(vec4<u32>(4u, 5u, 6u, 7u), vec4<u32>(others)) * params.width;
    for (var key = 0u; key < select(0u, row.t + 1u + others, row.is_there); key += 4u) {
        let left = four_values(v, key, quad);
        let right = four_values(v, key, next);
        let of_upper = four_weights(upper + key);
        let of_lower = four_weights(lower + key);
        upper_left += left * of_upper;
        upper_right += right * of_upper;
        lower_left += left * of_lower;
        lower_right += right * of_lower;
    }
    put_four(row, row.t, quad, upper_left, upper_right);
    put_four(row, row.t + 4u, quad, lower_left, lower_right);
}
