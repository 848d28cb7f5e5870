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
    // Beyond -80 the sigmoid is 0 in any case, and its exponential would overflow.
    let sigmoid = 1.0 / (1.0 + exp(min(-gate, vec4<f32>(80.0))));
    out_put(e, gate * sigmoid * up_quad(e, valid), valid);
}
