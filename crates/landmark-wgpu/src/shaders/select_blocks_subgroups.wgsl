// The same as `select_blocks.wgsl`, a subgroup a choice: nobody waits for a workgroup. The thread whose number is the
// round keeps what the round took, so a subgroup has at least TOP_K threads.

const NO_BLOCK: u32 = 0xffffffffu;

fn comes_first(value: f32, index: u32, other_value: f32, other_index: u32) -> bool {
    return value > other_value || (value == other_value && index < other_index);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    // Rows of the result that a choice serves: how many, the first, and how far apart.
    var rows = 1u;
    var apart = 1u;
    var choices = params.batch * params.heads * params.tokens;
    if (SELECTION == 1u) {
        choices = params.batch * params.tokens;
        rows = params.heads;
        apart = params.tokens;
    } else if (SELECTION == 2u) {
        choices = params.batch * params.heads;
        rows = params.tokens;
    }
    let number = group_index(group, groups) * subgroups + subgroup;
    let choice = min(number, choices - 1u);
    var first = choice;
    if (SELECTION == 1u) {
        first = choice / params.tokens * params.heads * params.tokens + choice % params.tokens;
    } else if (SELECTION == 2u) {
        first = choice * params.tokens;
    }
    let b = first / (params.heads * params.tokens);
    let state = state_of(lengths_at(b));
    let count = counts_at(b);
    var value = NOTHING;
    var index = NO_BLOCK;
    for (var j = lane; j < state.cached; j += size) {
        let score = scores_one(choice * params.blocks + j);
        if (index == NO_BLOCK || score > value) {
            value = score;
            index = j;
        }
    }
    var taken = NO_BLOCK;
    for (var round = 0u; round < TOP_K; round++) {
        let top = subgroupMax(value);
        let best = subgroupMin(select(NO_BLOCK, index, value == top));
        if (lane == round) {
            taken = best;
        }
        if (index == best && best != NO_BLOCK) {
            let last = value;
            value = NOTHING;
            index = NO_BLOCK;
            for (var j = lane; j < state.cached; j += size) {
                let score = scores_one(choice * params.blocks + j);
                if (comes_first(last, best, score, j) && (index == NO_BLOCK || score > value)) {
                    value = score;
                    index = j;
                }
            }
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
    if (lane < TOP_K && number < choices) {
        for (var i = 0u; i < rows; i++) {
            let row = first + i * apart;
            chosen[row * TOP_K + place] = select(NO_BLOCK, taken, row % params.tokens < count);
        }
    }
}
