// out (=|+=) scale * a * transpose(b) + bias, for few rows: a (M, K), b (N, K), out (M, N).
//
// The weights b are read once, whatever M is; that is all the time it takes. A workgroup makes four columns of the
// result: its threads go along the rows of b together, 16 bytes each, so that what they read at a time is one piece
// of memory, and each has four such reads under way.
//
// A launch makes several products of the same a: the text stands once for each, `$` for the suffix of its names.

fn start_of$(row: u32) -> u32 {
    // Behind the last row, the last one again: its result is not stored.
    return min(row, params.n$ - 1u) * params.k;
}

fn product$(col: u32, thread: u32) {
    let b0 = start_of$(col);
    let b1 = start_of$(col + 1u);
    let b2 = start_of$(col + 2u);
    let b3 = start_of$(col + 3u);
    var sums: array<vec4<f32>, ROWS>;
    for (var k = 4u * b$_PARTS * thread; k < params.k; k += 4u * b$_PARTS * WORKGROUP) {
        let valid = valid_of(k, params.k);
        let w0 = b$_load(b0 + k, valid);
        let w1 = b$_load(b1 + k, valid);
        let w2 = b$_load(b2 + k, valid);
        let w3 = b$_load(b3 + k, valid);
        let scales = vec4<f32>(b$_scale(b0 + k), b$_scale(b1 + k), b$_scale(b2 + k), b$_scale(b3 + k));
        var products: array<vec4<f32>, ROWS>;
        for (var i = 0u; i < b$_PARTS; i++) {
            let p0 = b$_part(w0, i);
            let p1 = b$_part(w1, i);
            let p2 = b$_part(w2, i);
            let p3 = b$_part(w3, i);
            for (var row = 0u; row < ROWS; row++) {
                let a = a_quad((params.above + row) * params.k + k + 4u * i, valid);
                products[row] += vec4<f32>(dot(a, p0), dot(a, p1), dot(a, p2), dot(a, p3));
            }
        }
        for (var row = 0u; row < ROWS; row++) {
            sums[row] += scales * products[row];
        }
    }
    for (var row = 0u; row < ROWS; row++) {
        let sum = combine(sums[row], thread);
        if (thread == 0u) {
            let valid = valid_of(col, params.n$);
            let e = row * params.stride$ + params.first$ + col;
            var value = params.scale * sum + bias$_quad(params.first$ + col, valid);
            if (ADD) {
                value += out$_quad(e, valid);
            }
            out$_put(e, value, valid);
        }
    }
}
