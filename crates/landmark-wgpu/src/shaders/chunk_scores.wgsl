// Scores of queries and keys of the chunk by threads that work alone: a thread takes 8 queries of a head, and every
// PARTS-th 8 keys up to the last of them.

fn query_unit(q: u32, t: u32, unit: u32) -> Pairs {
    return q_pairs(q + min(t, params.rows - 1u) * params.q_cols, unit);
}

fn key_unit(k: u32, t: u32, unit: u32) -> Pairs {
    return k_pairs(k + min(t, params.rows - 1u) * params.k_cols, unit);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = group_index(group, groups) * WORKGROUP + thread;
    let tiles = (params.row_count + 7u) / 8u;
    let first = i / PARTS % tiles * 8u;
    let row = row_of(i / PARTS / tiles * params.row_count + first);
    let state = state_of(lengths_at(row.b));
    let rows = min(8u, params.row_count - first);
    let q = row.b * params.rows * params.q_cols + params.q_start + row.h * HEAD;
    let k = row.b * params.rows * params.k_cols + params.k_start + row.h / params.share * HEAD;
    let at = row.scores + params.slots * params.block + state.unfinished;
    for (var key = i % PARTS * 8u; key < select(0u, row.t + rows, row.is_there); key += 8u * PARTS) {
        var upper_left = mat4x4<f32>();
        var upper_right = mat4x4<f32>();
        var lower_left = mat4x4<f32>();
        var lower_right = mat4x4<f32>();
        for (var unit = 0u; unit < UNITS; unit++) {
            let upper = four(query_unit(q, row.t, unit), query_unit(q, row.t + 1u, unit),
                query_unit(q, row.t + 2u, unit), query_unit(q, row.t + 3u, unit));
            let lower = four(query_unit(q, row.t + 4u, unit), query_unit(q, row.t + 5u, unit),
                query_unit(q, row.t + 6u, unit), query_unit(q, row.t + 7u, unit));
            let left = four(key_unit(k, key, unit), key_unit(k, key + 1u, unit),
                key_unit(k, key + 2u, unit), key_unit(k, key + 3u, unit));
            let right = four(key_unit(k, key + 4u, unit), key_unit(k, key + 5u, unit),
                key_unit(k, key + 6u, unit), key_unit(k, key + 7u, unit));
            upper_left += products(upper, left);
            upper_right += products(upper, right);
            lower_left += products(lower, left);
            lower_right += products(lower, right);
        }
        put_tile(at + key, params.width, rows, 8u, upper_left, upper_right, lower_left, lower_right);
    }
}
