// out = silu(gate) * up.

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
    let gate = gate_quad(e, valid);
    out_put(e, vec4<f32>(silu(gate.xy), silu(gate.zw)) * up_quad(e, valid), valid);
}
