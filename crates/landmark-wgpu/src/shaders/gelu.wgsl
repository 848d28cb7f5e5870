// out = x * Phi(x), exact GELU.

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
    let valid = valid_of(e, params.numel);
    out_put(e, gelu(x_quad(e, valid)), valid);
}
