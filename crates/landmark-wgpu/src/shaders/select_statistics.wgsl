// Of every row of scores, its maximum and the sum of its exponentials: what makes probabilities of them.

fn work(row: u32, lane: u32) {
    if (row >= params.batch * params.heads * params.tokens) {
        return;
    }
    let cached = state_of(lengths_at(row / (params.heads * params.tokens))).cached;
    var top = NOTHING;
    for (var j = lane; j < cached; j += LANES) {
        top = max(top, scores_one(row * params.blocks + j));
    }
    top = combine(top, lane, false);
    var sum = 0.0;
    for (var j = lane; j < cached; j += LANES) {
        sum += exp(scores_one(row * params.blocks + j) - top);
    }
    sum = combine(sum, lane, true);
    if (lane == 0u) {
        statistics[row] = vec2<f32>(top, sum);
    }
}
