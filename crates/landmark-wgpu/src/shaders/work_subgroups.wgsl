// The entry point of kernels written for subgroups.

var<private> subgroup: u32;
var<private> subgroups: u32;
// How many threads this subgroup has, and the number of this one.
var<private> lanes: u32;
var<private> lane: u32;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(num_subgroups) num_subgroups: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
    subgroup = subgroup_id;
    subgroups = num_subgroups;
    lanes = subgroup_size;
    lane = subgroup_invocation_id;
    work(group, groups, thread);
}

