// A row by a thread that works alone: nothing to add up. And the entry point.

const LANES: u32 = 1u;

fn combine(value: f32, lane: u32, is_sum: bool) -> f32 {
    return value;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    work(group_index(group, groups) * WORKGROUP + thread, 0u);
}

