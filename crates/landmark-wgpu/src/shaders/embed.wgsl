// out[n, :] = table[tokens[n], :]. The table may be in pieces: each launch serves the tokens of one, `first .. first +
// held`.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let quads = (params.cols + 3u) / 4u;
    let i = group_index(group, groups) * WORKGROUP + thread;
    if (i >= params.rows * quads) {
        return;
    }
    let row = i / quads;
    let col = 4u * (i % quads);
    let token = tokens_at(row);
    if (token >= params.limit) {
        atomicMax(&status[params.check], max(token + 1u, token));
        return;
    }
    // Tokens before the piece wrap round to numbers beyond it.
    let held = token - params.first;
    if (held >= params.held) {
        return;
    }
    let valid = valid_of(col, params.cols);
    out_put(row * params.cols + col, table_quad(held * params.cols + col, valid), valid);
}
