// The same as `select_blocks.wgsl`, a subgroup a choice.

fn work(group: vec3<u32>, groups: vec3<u32>, thread: u32) {
    let number = group_index(group, groups) * subgroups + subgroup;
    let choice = min(number, choices() - 1u);
    let served = served_by(choice);
    let b = served.first / (params.heads * params.tokens);
    let state = state_of(lengths_at(b));
    let count = counts_at(b);
    let taken = take_best(choice, state.cached);
    if (lane < TOP_K && number < choices()) {
        for (var i = 0u; i < served.rows; i++) {
            let row = served.first + i * served.apart;
            chosen[row * TOP_K + taken.place] = select(NO_BLOCK, taken.block, row % params.tokens < count);
        }
    }
}
