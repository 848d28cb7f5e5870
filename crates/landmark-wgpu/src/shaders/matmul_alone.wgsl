// out (=|+=) scale * a * transpose(b) + bias, by threads that work alone: a (M, K), b (N, K), out (M, N).
//
// A thread makes ROWS x 8 results, and of every word that it loads it makes the most: that is what takes time where
// nothing but instructions does.

fn a_row(row: u32) -> u32 {
    // Behind the last row, the last one again: its result is not stored.
    return a_start((params.above + min(row, params.m - 1u)) * params.k);
}

fn b_row(col: u32) -> u32 {
    return min(col, params.n - 1u) * params.k;
}

fn four_rows(a: vec4<u32>, i: u32, valid: u32) -> mat4x4<f32> {
    return mat4x4<f32>(a_next(a.x, i, valid), a_next(a.y, i, valid), a_next(a.z, i, valid), a_next(a.w, i, valid));
}

// The scales of four columns of the result from column k of b on.
fn four_scales(e: vec4<u32>, k: u32) -> vec4<f32> {
    return vec4<f32>(b_scale(e.x + k), b_scale(e.y + k), b_scale(e.z + k), b_scale(e.w + k));
}

// A row for each of these columns of the result.
fn four_columns(b: vec4<u32>, scales: vec4<f32>, i: u32, valid: u32) -> mat4x4<f32> {
    return transpose(mat4x4<f32>(
        scales.x * b_next(b.x, i, valid), scales.y * b_next(b.y, i, valid),
        scales.z * b_next(b.z, i, valid), scales.w * b_next(b.w, i, valid)));
}

fn store_four(row: u32, col: u32, four: mat4x4<f32>) {
    store(row, col, four[0]);
    store(row + 1u, col, four[1]);
    store(row + 2u, col, four[2]);
    store(row + 3u, col, four[3]);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let number = group_index(group, groups) * WORKGROUP + thread;
    let across = (params.n + 7u) / 8u;
    let row = number / across * ROWS;
    let col = number % across * 8u;
    let a_upper = vec4<u32>(a_row(row), a_row(row + 1u), a_row(row + 2u), a_row(row + 3u));
    let a_lower = vec4<u32>(a_row(row + 4u), a_row(row + 5u), a_row(row + 6u), a_row(row + 7u));
    let e_left = vec4<u32>(b_row(col), b_row(col + 1u), b_row(col + 2u), b_row(col + 3u));
    let e_right = vec4<u32>(b_row(col + 4u), b_row(col + 5u), b_row(col + 6u), b_row(col + 7u));
    let b_left = vec4<u32>(b_start(e_left.x), b_start(e_left.y), b_start(e_left.z), b_start(e_left.w));
    let b_right = vec4<u32>(b_start(e_right.x), b_start(e_right.y), b_start(e_right.z), b_start(e_right.w));
    var only_left = vec4<f32>(0.0);
    var only_right = vec4<f32>(0.0);
    // A column for each row of the result. Nothing but whole matrices is read and written, or they do not stay in registers.
    var upper_left = mat4x4<f32>();
    var upper_right = mat4x4<f32>();
    var lower_left = mat4x4<f32>();
    var lower_right = mat4x4<f32>();
    // Weights in blocks have a scale for 32 columns.
    let quads = (params.k + 3u) / 4u;
    for (var block = 0u; block < quads; block += 8u) {
        let left_scales = four_scales(e_left, 4u * block);
        let right_scales = four_scales(e_right, 4u * block);
        for (var i = block; i < min(block + 8u, quads); i++) {
            let valid = valid_of(4u * i, params.k);
            let left = four_columns(b_left, left_scales, i, valid);
            let right = four_columns(b_right, right_scales, i, valid);
            if (ROWS == 1u) {
                let a = a_next(a_upper.x, i, valid);
                only_left += left * a;
                only_right += right * a;
            } else {
                let upper = four_rows(a_upper, i, valid);
                upper_left += left * upper;
                upper_right += right * upper;
            }
            if (ROWS > 4u) {
                let lower = four_rows(a_lower, i, valid);
                lower_left += left * lower;
                lower_right += right * lower;
            }
        }
    }
    if (ROWS == 1u) {
        store(row, col, only_left);
        store(row, col + 4u, only_right);
    } else {
        store_four(row, col, upper_left);
        store_four(row, col + 4u, upper_right);
    }
    if (ROWS > 4u) {
        store_four(row + 4u, col, lower_left);
        store_four(row + 4u, col + 4u, lower_right);
    }
}
