// The same as `select_blocks.wgsl`, a thread a choice: a pass over the blocks for each that is taken.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let choice = group_index(group, groups) * WORKGROUP + thread;
    if (choice >= choices()) {
        return;
    }
    let served = served_by(choice);
    let b = served.first / (params.heads * params.tokens);
    let state = state_of(lengths_at(b));
    let count = counts_at(b);
    // In time order.
    var taken: array<u32, TOP_K>;
    var best = best_of(choice, 0u, 1u, state.cached);
    for (var round = 0u; round < TOP_K; round++) {
        var place = round;
        while (place > 0u && taken[max(place, 1u) - 1u] > best.index) {
            taken[place] = taken[place - 1u];
            place--;
        }
        taken[place] = best.index;
        best = next_best(best, choice, 0u, 1u, state.cached);
    }
    for (var i = 0u; i < served.rows * TOP_K; i++) {
        let row = served.first + i / TOP_K * served.apart;
        chosen[row * TOP_K + i % TOP_K] = select(NO_BLOCK, taken[i % TOP_K], row % params.tokens < count);
    }
}
