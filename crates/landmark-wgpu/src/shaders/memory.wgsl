// What a memory of a given length holds: every derived number of the row in one place.

// What stands where no block was chosen.
const NO_BLOCK: u32 = 0xffffffffu;

struct State {
    // Whole blocks seen so far, kept or not.
    seen: u32,
    // Whole blocks kept.
    cached: u32,
    // Positions of the unfinished block.
    unfinished: u32,
    // Blocks that can be retrieved.
    retrieved: u32,
}

fn state_of(length: u32) -> State {
    let seen = length / params.block;
    let cached = min(seen, params.blocks);
    return State(seen, cached, length % params.block, min(params.top_k, cached));
}

// Ring slot of cached block j, 0 the oldest.
fn slot_of(state: State, j: u32) -> u32 {
    return (state.seen - state.cached + j) % (params.blocks + 1u);
}

// 0 for old blocks, then 1, 2, ... for the last ones.
fn stingy_index(state: State, j: u32) -> u32 {
    return max(j + state.retrieved + 1u, state.cached) - state.cached;
}

