// Stores a chunk in the rings: position lengths[b] + t takes k[b, skip + t] and v[b, skip + t], for t < counts[b].
// A chunk longer than the ring writes only what would be left of it, since threads have no order.

fn append(i: u32) {
    let quads = (params.head_dim + 3u) / 4u;
    if (i >= params.batch * params.tokens * params.held * quads) {
        return;
    }
    let d = 4u * (i % quads);
    // Of the heads that lie in this piece of the rings.
    let held = i / quads % params.held;
    let h = params.first_head + held;
    let t = i / quads / params.held % params.tokens;
    let b = i / quads / params.held / params.tokens;
    let count = counts_at(b);
    if (t >= count || t + params.slots * params.block < count) {
        return;
    }
    let position = lengths_at(b) + t;
    let slot = position / params.block % params.slots;
    let offset = position % params.block;
    let row = b * (params.skip + params.tokens) + params.skip + t;
    let valid = valid_of(d, params.head_dim);
    let key = k_quad(row * params.k_cols + params.k_start + h * params.head_dim + d, valid);
    let value = v_quad(row * params.v_cols + params.v_start + h * params.head_dim + d, valid);
    let e = (((b * params.slots + slot) * params.held + held) * params.block + offset) * params.head_dim + d;
    keys_put(e, key, valid);
    values_put(e, value, valid);
    if (offset + 1u == params.block) {
        landmarks_put(((b * params.kv_heads + h) * params.slots + slot) * params.head_dim + d, key, valid);
    }
}
