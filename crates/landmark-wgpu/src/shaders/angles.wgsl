// Sines and cosines of the rotary angles of positions 0 .. positions, unit by unit: the table that retrieval reads.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = group_index(group, groups) * WORKGROUP + thread;
    if (i >= params.positions * UNITS) {
        return;
    }
    let at = unit_angles(f32(i / UNITS), i % UNITS);
    angles[2u * i] = at.sin;
    angles[2u * i + 1u] = at.cos;
}
