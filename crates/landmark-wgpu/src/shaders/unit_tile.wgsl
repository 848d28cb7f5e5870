// Scores of queries and keys four by four, a unit of their coordinates at a time, by a thread that works alone.

// A unit of four queries or keys: first coordinates of its pairs, a column each, and second ones.
struct Four {
    a: mat4x4<f32>,
    b: mat4x4<f32>,
}

fn four(x0: Pairs, x1: Pairs, x2: Pairs, x3: Pairs) -> Four {
    return Four(mat4x4<f32>(x0.a, x1.a, x2.a, x3.a), mat4x4<f32>(x0.b, x1.b, x2.b, x3.b));
}

// A column for each query.
fn products(queries: Four, keys: Four) -> mat4x4<f32> {
    return transpose(keys.a) * queries.a + transpose(keys.b) * queries.b;
}

// Writes the scores of `rows` queries and `cols` keys out of eight each; `stride` lies between two queries.
fn put_tile(
    at: u32, stride: u32, rows: u32, cols: u32,
    upper_left: mat4x4<f32>, upper_right: mat4x4<f32>, lower_left: mat4x4<f32>, lower_right: mat4x4<f32>,
) {
    put_row(at, 0u < rows, cols, upper_left[0], upper_right[0]);
    put_row(at + stride, 1u < rows, cols, upper_left[1], upper_right[1]);
    put_row(at + 2u * stride, 2u < rows, cols, upper_left[2], upper_right[2]);
    put_row(at + 3u * stride, 3u < rows, cols, upper_left[3], upper_right[3]);
    put_row(at + 4u * stride, 4u < rows, cols, lower_left[0], lower_right[0]);
    put_row(at + 5u * stride, 5u < rows, cols, lower_left[1], lower_right[1]);
    put_row(at + 6u * stride, 6u < rows, cols, lower_left[2], lower_right[2]);
    put_row(at + 7u * stride, 7u < rows, cols, lower_left[3], lower_right[3]);
}

fn put_row(at: u32, is_there: bool, cols: u32, left: vec4<f32>, right: vec4<f32>) {
    if (is_there && cols > 0u) {
        out_put(at, params.scale * left, min(cols, 4u));
    }
    if (is_there && cols > 4u) {
        out_put(at + 4u, params.scale * right, cols - 4u);
    }
}
