// The top_k best blocks of each choice, in time order, then NO_BLOCK. A workgroup a choice, which serves one row of
// the result, or all heads of a token, or all tokens of a head.
//
// Threads keep the best of every WORKGROUP-th block. The workgroup takes the best of those, and only the thread that
// had it looks for its next one: one pass over the blocks, and top_k short ones. Of equals the oldest is taken.

const NO_BLOCK: u32 = 0xffffffffu;

var<workgroup> values: array<f32, WORKGROUP>;
var<workgroup> indices: array<u32, WORKGROUP>;
var<workgroup> taken: array<u32, TOP_K>;

fn comes_first(value: f32, index: u32, other_value: f32, other_index: u32) -> bool {
    return value > other_value || (value == other_value && index < other_index);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let choice = group_index(group, groups);
    // Rows of the result that the choice serves: how many, the first, and how far apart.
    var rows = 1u;
    var first = choice;
    var apart = 1u;
    var choices = params.batch * params.heads * params.tokens;
    if (SELECTION == 1u) {
        choices = params.batch * params.tokens;
        rows = params.heads;
        first = choice / params.tokens * params.heads * params.tokens + choice % params.tokens;
        apart = params.tokens;
    } else if (SELECTION == 2u) {
        choices = params.batch * params.heads;
        rows = params.tokens;
        first = choice * params.tokens;
    }
    if (choice >= choices) {
        return;
    }
    let b = first / (params.heads * params.tokens);
    let state = state_of(lengths_at(b));
    let count = counts_at(b);
    var value = NOTHING;
    var index = NO_BLOCK;
    for (var j = thread; j < state.cached; j += WORKGROUP) {
        let score = scores_one(choice * params.blocks + j);
        if (index == NO_BLOCK || score > value) {
            value = score;
            index = j;
        }
    }
    for (var round = 0u; round < TOP_K; round++) {
        values[thread] = value;
        indices[thread] = index;
        workgroupBarrier();
        for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
            if (thread < half && comes_first(values[thread + half], indices[thread + half], values[thread], indices[thread])) {
                values[thread] = values[thread + half];
                indices[thread] = indices[thread + half];
            }
            workgroupBarrier();
        }
        let best = indices[0];
        if (thread == 0u) {
            taken[round] = best;
        }
        if (index == best && best != NO_BLOCK) {
            let last = value;
            value = NOTHING;
            index = NO_BLOCK;
            for (var j = thread; j < state.cached; j += WORKGROUP) {
                let score = scores_one(choice * params.blocks + j);
                if (comes_first(last, best, score, j) && (index == NO_BLOCK || score > value)) {
                    value = score;
                    index = j;
                }
            }
        }
        workgroupBarrier();
    }
    // A block's place in time is the number of chosen ones before it.
    for (var i = thread; i < rows * TOP_K; i += WORKGROUP) {
        let row = first + i / TOP_K * apart;
        let block = taken[i % TOP_K];
        var place = 0u;
        for (var other = 0u; other < TOP_K; other++) {
            if (taken[other] < block || (taken[other] == block && other < i % TOP_K)) {
                place++;
            }
        }
        let is_real = row % params.tokens < count;
        chosen[row * TOP_K + place] = select(NO_BLOCK, block, is_real);
    }
}
