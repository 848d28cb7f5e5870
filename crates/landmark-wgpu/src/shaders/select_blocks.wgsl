// The top_k best blocks of each choice, in time order, then NO_BLOCK. A workgroup a choice, which serves one row of
// the result, or all heads of a token, or all tokens of a head.
//
// Threads keep the best of every WORKGROUP-th block. The workgroup takes the best of those, and only the thread that
// had it looks for its next one: one pass over the blocks, and top_k short ones. Of equals the oldest is taken.

var<workgroup> values: array<f32, WORKGROUP>;
var<workgroup> indices: array<u32, WORKGROUP>;
var<workgroup> taken: array<u32, TOP_K>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let choice = group_index(group, groups);
    if (choice >= choices()) {
        return;
    }
    let served = served_by(choice);
    let b = served.first / (params.heads * params.tokens);
    let state = state_of(lengths_at(b));
    let count = counts_at(b);
    var own = best_of(choice, thread, WORKGROUP, state.cached);
    for (var round = 0u; round < TOP_K; round++) {
        values[thread] = own.value;
        indices[thread] = own.index;
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
        if (own.index == best && best != NO_BLOCK) {
            own = next_best(own, choice, thread, WORKGROUP, state.cached);
        }
        workgroupBarrier();
    }
    // A block's place in time is the number of chosen ones before it.
    for (var i = thread; i < served.rows * TOP_K; i += WORKGROUP) {
        let row = served.first + i / TOP_K * served.apart;
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
