// The outer softmax over the records that a query's workgroups left (`block_results.wgsl`): a thread makes four
// coordinates of a head.

fn decay(x: f32) -> f32 {
    return exp(max(x, -87.0));
}

fn join(i: u32) {
    let heads = params.held * params.share;
    let quad = i % QUADS;
    let query = i / QUADS;
    if (query >= params.batch * heads * params.rows) {
        return;
    }
    let t = query % params.rows;
    let h = params.first_head * params.share + query / params.rows % heads;
    let b = query / params.rows / heads;
    let first = query * params.items * RECORD;
    var top = NOTHING;
    for (var item = 0u; item < params.items; item++) {
        top = max(top, records[first + item * RECORD + QUADS].x);
    }
    var sum = 0.0;
    var result = vec4<f32>(0.0);
    for (var item = 0u; item < params.items; item++) {
        let record = first + item * RECORD;
        let share = decay(records[record + QUADS].x - top);
        sum += share * records[record + QUADS].y;
        result += share * records[record + quad];
    }
    if (sum > 0.0) {
        result = result / sum;
    }
    out_put(((b * params.rows + t) * params.heads + h) * HEAD + 4u * quad, result, valid_of(4u * quad, HEAD));
    for (var slot = quad; slot < params.top_k; slot += QUADS) {
        let at = slot % SLOTS;
        let closing = records[first + slot / SLOTS * RECORD + QUADS + 1u + at / 4u][at % 4u];
        let share = select(0.0, decay(closing - top) / sum, closing > NOTHING);
        shares_put_one(((b * params.heads + h) * params.rows + t) * params.top_k + slot, share);
    }
}
