// The best blocks of a choice, found by a subgroup together: nobody waits for a workgroup. The thread whose number is the round
// keeps what the round took, so a subgroup has at least TOP_K threads; the others have none.

struct Taken {
    block: u32,
    // Its place in time: the number of chosen ones before it.
    place: u32,
}

fn take_best(choice: u32, cached: u32) -> Taken {
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
    return Taken(taken, place);
}
