// Sums over the threads of a workgroup, by halves; the first thread has the sum. And the entry point.

var<workgroup> partial: array<vec4<f32>, WORKGROUP>;

fn combine(v: vec4<f32>, thread: u32) -> vec4<f32> {
    partial[thread] = v;
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

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    work(group, groups, thread);
}

