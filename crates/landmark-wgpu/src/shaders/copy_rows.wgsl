// out[b, out_row + r, out_start ..] (=|+=) source[b, source_row + r, source_start ..].

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let quads = (params.width + 3u) / 4u;
    let i = group_index(group, groups) * WORKGROUP + thread;
    if (i >= params.batch * params.rows * quads) {
        return;
    }
    let col = 4u * (i % quads);
    let r = i / quads % params.rows;
    let b = i / quads / params.rows;
    let valid = valid_of(col, params.width);
    let from_row = b * params.source_rows + params.source_row + r;
    let to_row = b * params.out_rows + params.out_row + r;
    let e = to_row * params.out_cols + params.out_start + col;
    var value = source_quad(from_row * params.source_cols + params.source_start + col, valid);
    if (ADD) {
        value += out_quad(e, valid);
    }
    out_put(e, value, valid);
}
