// The entry point of kernels whose threads have nothing to do with each other: `$` of a thread's number.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    $(group_index(group, groups) * WORKGROUP + thread);
}
