// loss = mean of the rows' losses over those that have a target; 0 where none has. One workgroup.

var<workgroup> partial: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) thread: u32) {
    var sum = vec2<f32>(0.0);
    for (var row = thread; row < params.rows; row += WORKGROUP) {
        if (targets_at(row) >= 0) {
            sum += vec2<f32>(losses[row], 1.0);
        }
    }
    partial[thread] = sum;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            partial[thread] += partial[thread + half];
        }
        workgroupBarrier();
    }
    if (thread == 0u) {
        loss_put_one(0u, partial[0].x / max(partial[0].y, 1.0));
    }
}
