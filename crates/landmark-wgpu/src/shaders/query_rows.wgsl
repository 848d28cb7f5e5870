// Where the scores of a query lie that threads make alone: a row for each query of a head, first those of the blocks that
// it chose, slot by slot, then those of its own run of keys, the unfinished block and the chunk.

struct Row {
    b: u32,
    h: u32,
    t: u32,
    // Of its choice, where the first slot's block is.
    choice: u32,
    // Where its scores begin.
    scores: u32,
    is_there: bool,
}

// Row number i: rows of a head follow one another, then come those of the next head.
fn row_of(i: u32) -> Row {
    let heads = params.held * params.share;
    let h = params.first_head * params.share + i / params.row_count % heads;
    let b = min(i / params.row_count / heads, params.batch - 1u);
    let t = params.first_row + i % params.row_count;
    let choice = ((b * params.heads + h) * params.rows + t) * params.top_k;
    return Row(b, h, t, choice, i * params.width, i < params.batch * heads * params.row_count);
}

struct Page {
    // Element of its first key in the rings.
    at: u32,
    // How many keys it has, and the number of the place that they stand at.
    keys: u32,
    place: u32,
}

// The block in a slot; behind the last slot, the unfinished one.
fn page_of(row: Row, state: State, slot: u32) -> Page {
    let ring = row.b * (params.blocks + 1u) * params.held + row.h / params.share - params.first_head;
    let size = params.block * HEAD;
    if (slot >= params.slots) {
        let place = select(state.retrieved + 1u, min(state.seen, params.top_k + 1u), BLOCKS_SEEN);
        let at = (ring + state.seen % (params.blocks + 1u) * params.held) * size;
        return Page(at, select(0u, state.unfinished, row.is_there), place);
    }
    let j = chosen_at(row.choice + slot);
    let is_there = row.is_there && slot < state.retrieved && j != NO_BLOCK;
    let at = (ring + slot_of(state, j) * params.held) * size;
    let place = slot + select(0u, 1u, stingy_index(state, j) > 0u);
    return Page(select(0u, at, is_there), select(0u, params.block, is_there), place);
}

