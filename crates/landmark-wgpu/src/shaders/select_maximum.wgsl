// The largest probability that any head (of a token), or any token (of a head), gives to each block.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = group_index(group, groups) * WORKGROUP + thread;
    let kept = select(params.heads, params.tokens, OVER_HEADS);
    if (i >= params.batch * kept * params.blocks) {
        return;
    }
    let j = i % params.blocks;
    let b = i / params.blocks / kept;
    let one = i / params.blocks % kept;
    let count = min(counts_at(b), params.tokens);
    if (j >= state_of(lengths_at(b)).cached || (OVER_HEADS && one >= count)) {
        return;
    }
    var top = 0.0;
    for (var other = 0u; other < select(count, params.heads, OVER_HEADS); other++) {
        let row = select(
            (b * params.heads + one) * params.tokens + other,
            (b * params.heads + other) * params.tokens + one,
            OVER_HEADS,
        );
        let of_row = statistics[row];
        top = max(top, exp(scores_one(row * params.blocks + j) - of_row.x) / of_row.y);
    }
    best[i] = top;
}
