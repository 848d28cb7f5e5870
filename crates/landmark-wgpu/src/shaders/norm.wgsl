// sum = x + delta; out = norm(sum), LayerNorm or RMSNorm; without delta, Norm alone. A workgroup a row.

var<workgroup> partial: array<f32, WORKGROUP>;

fn workgroup_sum(value: f32, thread: u32) -> f32 {
    partial[thread] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            partial[thread] += partial[thread + half];
        }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

fn row_quad(e: u32, valid: u32) -> vec4<f32> {
    return x_quad(e, valid) + delta_quad(e, valid);
}

// 1 for elements that are there, 0 behind them.
fn mask(valid: u32) -> vec4<f32> {
    return select(vec4<f32>(0.0), vec4<f32>(1.0), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(valid));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group_index(group, groups);
    if (row >= params.rows) {
        return;
    }
    let start = row * params.cols;
    var mean = 0.0;
    if (LAYER) {
        var total = 0.0;
        for (var col = 4u * thread; col < params.cols; col += 4u * WORKGROUP) {
            total += sum4(row_quad(start + col, valid_of(col, params.cols)));
        }
        mean = workgroup_sum(total, thread) / f32(params.cols);
    }
    var squares = 0.0;
    for (var col = 4u * thread; col < params.cols; col += 4u * WORKGROUP) {
        let valid = valid_of(col, params.cols);
        let d = (row_quad(start + col, valid) - mean) * mask(valid);
        squares += dot(d, d);
    }
    let scale = 1.0 / sqrt(workgroup_sum(squares, thread) / f32(params.cols) + params.eps);
    for (var col = 4u * thread; col < params.cols; col += 4u * WORKGROUP) {
        let valid = valid_of(col, params.cols);
        let v = row_quad(start + col, valid);
        sum_put(start + col, v, valid);
        out_put(start + col, (v - mean) * scale * weight_quad(col, valid) + bias_quad(col, valid), valid);
    }
}
