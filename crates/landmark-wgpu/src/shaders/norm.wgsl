// sum = x + delta; out = norm(sum), LayerNorm or RMSNorm; without delta, Norm alone. LANES threads a row.

fn row_quad(e: u32, valid: u32) -> vec4<f32> {
    return x_quad(e, valid) + delta_quad(e, valid);
}

// 1 for elements that are there, 0 behind them.
fn mask(valid: u32) -> vec4<f32> {
    return select(vec4<f32>(0.0), vec4<f32>(1.0), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(valid));
}

fn work(row: u32, lane: u32) {
    if (row >= params.rows) {
        return;
    }
    let start = row * params.cols;
    var mean = 0.0;
    if (LAYER) {
        var total = 0.0;
        for (var col = 4u * lane; col < params.cols; col += 4u * LANES) {
            total += sum4(row_quad(start + col, valid_of(col, params.cols)));
        }
        mean = combine(total, lane, true) / f32(params.cols);
    }
    var squares = 0.0;
    for (var col = 4u * lane; col < params.cols; col += 4u * LANES) {
        let valid = valid_of(col, params.cols);
        let d = (row_quad(start + col, valid) - mean) * mask(valid);
        squares += dot(d, d);
    }
    let scale = 1.0 / sqrt(combine(squares, lane, true) / f32(params.cols) + params.eps);
    for (var col = 4u * lane; col < params.cols; col += 4u * LANES) {
        let valid = valid_of(col, params.cols);
        let v = row_quad(start + col, valid);
        sum_put(start + col, v, valid);
        out_put(start + col, (v - mean) * scale * weight_quad(col, valid) + bias_quad(col, valid), valid);
    }
}
