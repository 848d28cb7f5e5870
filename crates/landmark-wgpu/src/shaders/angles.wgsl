// Sines and cosines of the rotary angles of positions, unit by unit: the table that retrieval reads. A row for each
// offset inside a block, then one for each place where a block can begin.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = group_index(group, groups) * WORKGROUP + thread;
    if (i >= params.rows * UNITS) {
        return;
    }
    let row = i / UNITS;
    let position = select((row - params.block) * params.block, row, row < params.block);
    let at = unit_angles(f32(position), i % UNITS);
    angles[2u * i] = at.sin;
    angles[2u * i + 1u] = at.cos;
}
