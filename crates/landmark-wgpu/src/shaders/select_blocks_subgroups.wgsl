// The same as `select_blocks.wgsl`, a subgroup a choice: nobody waits for a workgroup. The thread whose number is the
// round keeps what the round took, so a subgroup has at least TOP_K threads.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let number = group_index(group, groups) * subgroups + subgroup;
    let choice = min(number, choices() - 1u);
    let served = served_by(choice);
    let b = served.first / (params.heads * params.tokens);
    let state = state_of(lengths_at(b));
    let count = counts_at(b);
    var own = best_of(choice, lane, size, state.cached);
    var taken = NO_BLOCK;
    for (var round = 0u; round < TOP_K; round++) {
        let top = subgroupMax(own.value);
        let best = subgroupMin(select(NO_BLOCK, own.index, own.value == top));
        if (lane == round) {
            taken = best;
        }
        if (own.index == best && best != NO_BLOCK) {
            own = next_best(own, choice, lane, size, state.cached);
        }
    }
    // A block's place in time is the number of chosen ones before it.
    var place = 0u;
    for (var other = 0u; other < TOP_K; other++) {
        let block = subgroupShuffle(taken, other);
        if (block < taken || (block == taken && other < lane)) {
            place++;
        }
    }
    if (lane < TOP_K && number < choices()) {
        for (var i = 0u; i < served.rows; i++) {
            let row = served.first + i * served.apart;
            chosen[row * TOP_K + place] = select(NO_BLOCK, taken, row % params.tokens < count);
        }
    }
}
