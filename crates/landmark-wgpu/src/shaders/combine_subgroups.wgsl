// Sums over the threads of a workgroup, by subgroups; the first thread has the sum. And the entry point.

var<workgroup> partial: array<vec4<f32>, WORKGROUP>;
var<private> subgroup: u32;
var<private> subgroups: u32;
var<private> lane: u32;

fn combine(v: vec4<f32>, thread: u32) -> vec4<f32> {
    let of_subgroup = subgroupAdd(v);
    if (lane == 0u) {
        partial[subgroup] = of_subgroup;
    }
    workgroupBarrier();
    var sum = vec4<f32>(0.0);
    if (thread == 0u) {
        for (var i = 0u; i < subgroups; i++) {
            sum += partial[i];
        }
    }
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(num_subgroups) num_subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
    subgroup = subgroup_id;
    subgroups = num_subgroups;
    lane = subgroup_invocation_id;
    work(group, groups, thread);
}

