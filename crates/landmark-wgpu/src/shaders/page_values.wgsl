// What queries get from pages, the blocks that they chose and the unfinished one, by threads that work alone: a thread makes
// 16 coordinates of a query's sum of values by weights.

// The part of a sum that begins at this vector of the head.
fn put_sum(row: u32, quad: u32, sum: vec4<f32>) {
    if (quad < QUADS) {
        sums[row * QUADS + quad] = sum;
    }
}

fn value(e: u32, quad: u32) -> vec4<f32> {
    let at = 4u * min(quad, QUADS - 1u);
    return values_quad(e + at, valid_of(at, HEAD));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = group_index(group, groups) * WORKGROUP + thread;
    let parts = (QUADS + 3u) / 4u;
    let quad = i % parts * 4u;
    let row = row_of(i / parts);
    let state = state_of(lengths_at(row.b));
    var sum0 = vec4<f32>(0.0);
    var sum1 = vec4<f32>(0.0);
    var sum2 = vec4<f32>(0.0);
    var sum3 = vec4<f32>(0.0);
    for (var slot = 0u; slot <= params.slots; slot++) {
        let page = page_of(row, state, slot);
        let at = row.scores + slot * params.block;
        for (var key = 0u; key < page.keys; key++) {
            let weight = scores[at + key];
            let e = page.at + key * HEAD;
            sum0 += weight * value(e, quad);
            sum1 += weight * value(e, quad + 1u);
            sum2 += weight * value(e, quad + 2u);
            sum3 += weight * value(e, quad + 3u);
        }
    }
    if (row.is_there) {
        put_sum(i / parts, quad, sum0);
        put_sum(i / parts, quad + 1u, sum1);
        put_sum(i / parts, quad + 2u, sum2);
        put_sum(i / parts, quad + 3u, sum3);
    }
}
