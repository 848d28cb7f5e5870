// out (=|+=) scale * a * transpose(b) + bias, for few rows: a (M, K), b (N, K), out (M, N).
//
// The weights b are read once, whatever M is; that is all the time it takes. A workgroup makes four columns of the
// result: its threads go along the rows of b together, so that what they read at a time is one piece of memory.

var<workgroup> partial: array<vec4<f32>, WORKGROUP>;

fn b_row(row: u32, k: u32, valid: u32) -> vec4<f32> {
    // Behind the last row, the last one again: its result is not stored.
    return b_quad(min(row, params.n - 1u) * params.k + k, valid);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let col = 4u * group_index(group, groups);
    if (col >= params.n) {
        return;
    }
    var sums: array<vec4<f32>, ROWS>;
    for (var k = 4u * thread; k < params.k; k += 4u * WORKGROUP) {
        let valid = valid_of(k, params.k);
        let b0 = b_row(col, k, valid);
        let b1 = b_row(col + 1u, k, valid);
        let b2 = b_row(col + 2u, k, valid);
        let b3 = b_row(col + 3u, k, valid);
        for (var row = 0u; row < ROWS; row++) {
            let a = a_quad((params.above + row) * params.k + k, valid);
            sums[row] += vec4<f32>(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
        }
    }
    for (var row = 0u; row < ROWS; row++) {
        partial[thread] = sums[row];
        workgroupBarrier();
        for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
            if (thread < half) {
                partial[thread] += partial[thread + half];
            }
            workgroupBarrier();
        }
        if (thread == 0u) {
            let valid = valid_of(col, params.n);
            let e = row * params.stride + params.first + col;
            var value = params.scale * partial[0] + bias_quad(params.first + col, valid);
            if (ADD) {
                value += out_quad(e, valid);
            }
            out_put(e, value, valid);
        }
        workgroupBarrier();
    }
}
