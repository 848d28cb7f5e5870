// out = value.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let e = 4u * (group_index(group, groups) * WORKGROUP + thread);
    if (e >= params.numel) {
        return;
    }
    out_put(e, vec4<f32>(params.value), valid_of(e, params.numel));
}
