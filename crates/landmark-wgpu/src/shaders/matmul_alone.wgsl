// out (=|+=) scale * a * transpose(b) + bias, by threads that work alone: a (M, K), b (N, K), out (M, N).
//
// A thread makes 8 x 16 results, fewer where there are few rows, and of every word that it loads it makes the most: that is what takes time where
// nothing but instructions does.

fn a_row(row: u32) -> u32 {
    // Behind the last row, the last one again: its result is not stored.
    return a_start((params.above + min(row, params.m - 1u)) * params.k);
}

// The elements where the rows of b for four columns of the result begin.
fn four_rows_of_b(col: u32) -> vec4<u32> {
    return min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(params.n - 1u)) * params.k;
}

fn four_starts(e: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(b_start(e.x), b_start(e.y), b_start(e.z), b_start(e.w));
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
    let across = (params.n + COLS - 1u) / COLS;
    let row = number / across * ROWS;
    let col = number % across * COLS;
    let a_upper = vec4<u32>(a_row(row), a_row(row + 1u), a_row(row + 2u), a_row(row + 3u));
    let a_lower = vec4<u32>(a_row(row + 4u), a_row(row + 5u), a_row(row + 6u), a_row(row + 7u));
    let e0 = four_rows_of_b(col);
    let e1 = four_rows_of_b(col + 4u);
    let e2 = four_rows_of_b(col + 8u);
    let e3 = four_rows_of_b(col + 12u);
    let b0 = four_starts(e0);
    let b1 = four_starts(e1);
    let b2 = four_starts(e2);
    let b3 = four_starts(e3);
    // Sums of the only row, of the upper four rows, a column each, and of the lower ones. Nothing but whole matrices is read
    // and written, or they do not stay in registers.
    var only0 = vec4<f32>(0.0);
    var only1 = vec4<f32>(0.0);
    var upper0 = mat4x4<f32>();
    var upper1 = mat4x4<f32>();
    var upper2 = mat4x4<f32>();
    var upper3 = mat4x4<f32>();
    var lower0 = mat4x4<f32>();
    var lower1 = mat4x4<f32>();
    var lower2 = mat4x4<f32>();
    var lower3 = mat4x4<f32>();
    // Weights in blocks have a scale for 32 columns.
    let quads = (params.k + 3u) / 4u;
    for (var block = 0u; block < quads; block += 8u) {
        let scales0 = four_scales(e0, 4u * block);
        let scales1 = four_scales(e1, 4u * block);
        let scales2 = four_scales(e2, 4u * block);
        let scales3 = four_scales(e3, 4u * block);
        for (var i = block; i < min(block + 8u, quads); i++) {
            let valid = valid_of(4u * i, params.k);
            let w0 = four_columns(b0, scales0, i, valid);
            let w1 = four_columns(b1, scales1, i, valid);
            if (ROWS == 1u) {
                let a = a_next(a_upper.x, i, valid);
                only0 += w0 * a;
                only1 += w1 * a;
            } else {
                let w2 = four_columns(b2, scales2, i, valid);
                let w3 = four_columns(b3, scales3, i, valid);
                let a = four_rows(a_upper, i, valid);
                upper0 += w0 * a;
                upper1 += w1 * a;
                upper2 += w2 * a;
                upper3 += w3 * a;
                if (ROWS > 4u) {
                    let a = four_rows(a_lower, i, valid);
                    lower0 += w0 * a;
                    lower1 += w1 * a;
                    lower2 += w2 * a;
                    lower3 += w3 * a;
                }
            }
        }
    }
    if (ROWS == 1u) {
        store(row, col, only0);
        store(row, col + 4u, only1);
    } else {
        store_four(row, col, upper0);
        store_four(row, col + 4u, upper1);
        store_four(row, col + 8u, upper2);
        store_four(row, col + 12u, upper3);
    }
    if (ROWS > 4u) {
        store_four(row + 4u, col, lower0);
        store_four(row + 4u, col + 4u, lower1);
        store_four(row + 4u, col + 8u, lower2);
        store_four(row + 4u, col + 12u, lower3);
    }
}
