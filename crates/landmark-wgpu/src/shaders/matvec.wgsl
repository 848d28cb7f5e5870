// out (=|+=) scale * a * transpose(b) + bias, for few rows: a (M, K), b (N, K), out (M, N).
//
// The weights b are read once, whatever M is; that is all the time it takes. A workgroup makes four columns of the
// result: its threads go along the rows of b together, 16 bytes each, so that what they read at a time is one piece
// of memory, and each has four such reads under way.
//
// With NORM, a is not the factor but what it is the RMSNorm of: since every workgroup meets all of a row, it adds up the
// squares as it goes along, and the norm is a factor of the sums. With SWIGLU, two columns are the gate's and two those of the
// inner matrix.
//
// A launch makes several products of the same a: the text stands once for each, `$` for the suffix of its names.

const STEP$: u32 = 4u * b$_PARTS * WORKGROUP;
const TURNS$: u32 = (INNER + STEP$ - 1u) / STEP$;

fn start_of$(row: u32) -> u32 {
    // Behind the last row, the last one again: its result is not stored.
    return min(row, params.n$ - 1u) * INNER;
}

fn product$(col: u32, thread: u32) {
    let b0 = start_of$(col);
    let b1 = start_of$(col + 1u);
    let b2 = start_of$(col + THIRD);
    let b3 = start_of$(col + THIRD + 1u);
    // Of every row; behind them, four rows in a vector, the squares.
    var sums: array<vec4<f32>, SUMS>;
    for (var turn = 0u; turn < TURNS$; turn++) {
        let k = 4u * b$_PARTS * thread + turn * STEP$;
        if (INNER % STEP$ != 0u && k >= INNER) {
            break;
        }
        let valid = valid_of(k, INNER);
        let w0 = b$_load(b0 + k, valid);
        let w1 = b$_load(b1 + k, valid);
        let w2 = third$_load(b2 + k, valid);
        let w3 = third$_load(b3 + k, valid);
        let scales =
            vec4<f32>(b$_scale(b0 + k), b$_scale(b1 + k), third$_scale(b2 + k), third$_scale(b3 + k));
        var products: array<vec4<f32>, ROWS>;
        var totals: array<f32, ROWS>;
        for (var i = 0u; i < b$_PARTS; i++) {
            let p0 = b$_part(w0, i);
            let p1 = b$_part(w1, i);
            let p2 = third$_part(w2, i);
            let p3 = third$_part(w3, i);
            for (var row = 0u; row < ROWS; row++) {
                var a = a_quad((params.above + row) * INNER + k + 4u * i, valid);
                if (NORM) {
                    sums[ROWS + row / 4u][row % 4u] += dot(a, a);
                    a *= norm_quad(k + 4u * i, valid);
                }
                totals[row] += sum4(a);
                products[row] += vec4<f32>(dot(a, p0), dot(a, p1), dot(a, p2), dot(a, p3));
            }
        }
        for (var row = 0u; row < ROWS; row++) {
            sums[row] += scales * (products[row] - b$_ZERO * totals[row]);
        }
    }
    combine(&sums, thread);
    if (thread == 0u) {
        for (var row = 0u; row < ROWS; row++) {
            var sum = sums[row];
            if (NORM) {
                sum /= sqrt(sums[ROWS + row / 4u][row % 4u] / f32(INNER) + params.eps);
            }
            store$(row, col, params.scale * sum);
        }
    }
}

fn store$(row: u32, col: u32, sum: vec4<f32>) {
    let valid = valid_of(col, params.n$);
    let e = row * params.stride$ + params.first$ + col;
    let bias = bias$_quad(params.first$ + col, valid);
    if (SWIGLU) {
        let shifted = sum + vec4<f32>(bias.xy, third_bias$_quad(col, valid).xy);
        out$_put(e, vec4<f32>(silu(shifted.xy) * shifted.zw, 0.0, 0.0), min(valid, 2u));
        return;
    }
    var value = sum + bias;
    if (GELU) {
        value = gelu(value);
    }
    value += residual_quad(e, valid);
    if (ADD) {
        value += out$_quad(e, valid);
    }
    out$_put(e, value, valid);
}
