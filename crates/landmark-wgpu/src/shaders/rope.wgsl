// Turns every pair of coordinates of every head by position * frequency. A thread turns four pairs.
// Where a second op was taken along, the threads behind those of the first are its.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = group_index(group, groups) * WORKGROUP + thread;
    let units = params.rows * params.heads * UNITS;
    let heads = select(params.heads, params.heads_2, i >= units);
    let at = select(i, i - units, i >= units);
    let unit = at % UNITS;
    let head = at / UNITS % heads;
    let row = at / UNITS / heads;
    if (row >= params.rows) {
        return;
    }
    let angles = unit_angles(params.direction * f32(positions_at(row)), unit);
    if (i < units) {
        let x = x_pairs(row * params.x_cols + params.x_start + head * HEAD, unit);
        out_put_pairs(row * params.out_cols + params.out_start + head * HEAD, unit, turn(x, angles));
    } else if (IS_TWO) {
        let x = x_2_pairs(row * params.x_cols_2 + params.x_start_2 + head * HEAD, unit);
        out_2_put_pairs(row * params.out_cols_2 + params.out_start_2 + head * HEAD, unit, turn(x, angles));
    }
}
