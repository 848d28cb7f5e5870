// Of every row of scores, its maximum and the sum of its exponentials: what makes probabilities of them.

var<workgroup> partial: array<f32, WORKGROUP>;

fn combine(value: f32, thread: u32, is_sum: bool) -> f32 {
    partial[thread] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            let other = partial[thread + half];
            partial[thread] = select(max(partial[thread], other), partial[thread] + other, is_sum);
        }
        workgroupBarrier();
    }
    let result = partial[0];
    workgroupBarrier();
    return result;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group_index(group, groups);
    if (row >= params.batch * params.heads * params.tokens) {
        return;
    }
    let cached = state_of(lengths_at(row / (params.heads * params.tokens))).cached;
    var top = NOTHING;
    for (var j = thread; j < cached; j += WORKGROUP) {
        top = max(top, scores_one(row * params.blocks + j));
    }
    top = combine(top, thread, false);
    var sum = 0.0;
    for (var j = thread; j < cached; j += WORKGROUP) {
        sum += exp(scores_one(row * params.blocks + j) - top);
    }
    sum = combine(sum, thread, true);
    if (thread == 0u) {
        statistics[row] = vec2<f32>(top, sum);
    }
}
