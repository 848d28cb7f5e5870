// The block in a slot of a choice, in time order: the whole choice by each subgroup for itself, since all of a workgroup want
// it, and its scores are few. See `select_blocks_subgroups.wgsl`.
fn block_of_slot(choice: u32, slot: u32, b: u32, t: u32) -> u32 {
    let cached = state_of(lengths_at(b)).cached;
    var own = best_of(choice, lane, lanes, cached);
    var taken = NO_BLOCK;
    for (var round = 0u; round < TOP_K; round++) {
        let top = subgroupMax(own.value);
        let best = subgroupMin(select(NO_BLOCK, own.index, own.value == top));
        if (lane == round) {
            taken = best;
        }
        if (own.index == best && best != NO_BLOCK) {
            own = next_best(own, choice, lane, lanes, cached);
        }
    }
    var place = 0u;
    for (var other = 0u; other < TOP_K; other++) {
        let block = subgroupShuffle(taken, other);
        if (block < taken || (block == taken && other < lane)) {
            place++;
        }
    }
    let found = subgroupMin(select(NO_BLOCK, taken, lane < TOP_K && place == slot));
    return select(NO_BLOCK, found, t < counts_at(b));
}

fn chosen_at(e: u32) -> u32 {
    return NO_BLOCK;
}

