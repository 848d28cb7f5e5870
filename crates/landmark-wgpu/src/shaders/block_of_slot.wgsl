// The block in a slot of a choice, in time order: the whole choice by each subgroup for itself, since all of a workgroup want
// it, and its scores are few.
fn block_of_slot(choice: u32, slot: u32, b: u32, t: u32) -> u32 {
    let taken = take_best(choice, state_of(lengths_at(b)).cached);
    let found = subgroupMin(select(NO_BLOCK, taken.block, lane < TOP_K && taken.place == slot));
    return select(NO_BLOCK, found, t < counts_at(b));
}

fn chosen_at(e: u32) -> u32 {
    return NO_BLOCK;
}

