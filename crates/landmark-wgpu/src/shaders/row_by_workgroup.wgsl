// A row by a workgroup: sums and maxima over its threads, by halves, which all of them get. And the entry point.

const LANES: u32 = WORKGROUP;

var<workgroup> partial: array<f32, WORKGROUP>;

fn combine(value: f32, lane: u32, is_sum: bool) -> f32 {
    partial[lane] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            let other = partial[lane + half];
            partial[lane] = select(max(partial[lane], other), partial[lane] + other, is_sum);
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
    work(group_index(group, groups), thread);
}

