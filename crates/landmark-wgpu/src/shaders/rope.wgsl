// Turns every pair of coordinates of every head by position * frequency. A thread turns four pairs.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = group_index(group, groups) * WORKGROUP + thread;
    if (i >= params.rows * params.heads * UNITS) {
        return;
    }
    let unit = i % UNITS;
    let head = i / UNITS % params.heads;
    let row = i / UNITS / params.heads;
    let angles = unit_angles(params.direction * f32(positions_at(row)), unit);
    let x = x_pairs(row * params.x_cols + params.x_start + head * HEAD, unit);
    out_put_pairs(row * params.out_cols + params.out_start + head * HEAD, unit, turn(x, angles));
}
