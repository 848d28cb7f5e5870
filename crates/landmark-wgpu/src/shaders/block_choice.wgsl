// What a choice of blocks is for, and the walks over its scores: what `select_blocks.wgsl` and
// `select_blocks_subgroups.wgsl` share.

// Rows of the result that a choice serves: how many, the first, and how far apart.
struct Served {
    rows: u32,
    first: u32,
    apart: u32,
}

fn served_by(choice: u32) -> Served {
    if (SELECTION == 1u) {
        let first = choice / params.tokens * params.heads * params.tokens + choice % params.tokens;
        return Served(params.heads, first, params.tokens);
    }
    if (SELECTION == 2u) {
        return Served(params.tokens, choice * params.tokens, 1u);
    }
    return Served(1u, choice, 1u);
}

fn choices() -> u32 {
    if (SELECTION == 1u) {
        return params.batch * params.tokens;
    }
    if (SELECTION == 2u) {
        return params.batch * params.heads;
    }
    return params.batch * params.heads * params.tokens;
}

struct Best {
    value: f32,
    index: u32,
}

fn comes_first(value: f32, index: u32, other_value: f32, other_index: u32) -> bool {
    return value > other_value || (value == other_value && index < other_index);
}

// The best of every `step`-th block from `start` on.
fn best_of(choice: u32, start: u32, step: u32, cached: u32) -> Best {
    var best = Best(NOTHING, NO_BLOCK);
    for (var j = start; j < cached; j += step) {
        let score = scores_one(choice * params.blocks + j);
        if (best.index == NO_BLOCK || score > best.value) {
            best = Best(score, j);
        }
    }
    return best;
}

// The best of those that come behind `last`.
fn next_best(last: Best, choice: u32, start: u32, step: u32, cached: u32) -> Best {
    var best = Best(NOTHING, NO_BLOCK);
    for (var j = start; j < cached; j += step) {
        let score = scores_one(choice * params.blocks + j);
        if (comes_first(last.value, last.index, score, j) && (best.index == NO_BLOCK || score > best.value)) {
            best = Best(score, j);
        }
    }
    return best;
}
