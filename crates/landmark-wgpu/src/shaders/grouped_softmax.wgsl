// The grouped softmax of one query by one workgroup, block after block, nothing stored but running sums.
//
// Keys come in tiles, a thread a key; `tile_weights` makes weights of their scores within the current block, and the
// kernel adds the values by them to `inner`. At a landmark the block's sum passes into the outer softmax with the
// landmark's weight (`close_block`); the query's own block passes into it key by key (`close_own_block`). Blocks gated
// by the context-miss token have a softmax of their own, whose result counts with the token's share.
//
// Scalars are the same in all threads; vectors are each thread's part of the result: four of its coordinates, summed
// over every SPLIT-th key.

var<workgroup> weights: array<f32, WORKGROUP>;
var<workgroup> landmark_score: f32;

var<private> inner_max: f32;
var<private> inner_sum: f32;
var<private> inner: vec4<f32>;
var<private> outer_max: f32;
var<private> outer_sum: f32;
var<private> outer: vec4<f32>;
var<private> gated_max: f32;
var<private> gated_sum: f32;
var<private> gated: vec4<f32>;

// e to a power that is never positive; far below it counts as e^-87, times something that is then 0.
fn decay(x: f32) -> f32 {
    return exp(max(x, -87.0));
}

fn begin_query() {
    outer_max = NOTHING;
    outer_sum = 0.0;
    outer = vec4<f32>(0.0);
    gated_max = NOTHING;
    gated_sum = 0.0;
    gated = vec4<f32>(0.0);
    begin_block();
}

fn begin_block() {
    inner_max = NOTHING;
    inner_sum = 0.0;
    inner = vec4<f32>(0.0);
}

// Weights of the first `count` threads' keys, in `weights`; those that are no members get 0.
fn tile_weights(score: f32, is_member: bool, count: u32, thread: u32) {
    weights[thread] = select(NOTHING, score, is_member);
    workgroupBarrier();
    var top = inner_max;
    for (var i = 0u; i < count; i++) {
        top = max(top, weights[i]);
    }
    let factor = decay(inner_max - top);
    workgroupBarrier();
    weights[thread] = select(0.0, decay(score - top), is_member);
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < count; i++) {
        sum += weights[i];
    }
    inner_sum = inner_sum * factor + sum;
    inner = inner * factor;
    inner_max = top;
}

// The context-miss token is a member of every outer set.
fn admit_miss(score: f32) {
    outer_max = score;
    outer_sum = 1.0;
}

// An earlier block ends at a landmark.
fn close_block(score: f32, is_gated: bool) {
    var mean = vec4<f32>(0.0);
    if (inner_sum > 0.0) {
        mean = inner / inner_sum;
    }
    if (is_gated) {
        let top = max(gated_max, score);
        let factor = decay(gated_max - top);
        let share = decay(score - top);
        gated_sum = gated_sum * factor + share;
        gated = gated * factor + share * mean;
        gated_max = top;
    } else {
        let top = max(outer_max, score);
        let factor = decay(outer_max - top);
        let share = decay(score - top);
        outer_sum = outer_sum * factor + share;
        outer = outer * factor + share * mean;
        outer_max = top;
    }
    begin_block();
}

fn close_own_block() {
    let top = max(outer_max, inner_max);
    let factor = decay(outer_max - top);
    let share = decay(inner_max - top);
    outer_sum = outer_sum * factor + inner_sum * share;
    outer = outer * factor + inner * share;
    outer_max = top;
}

// The token's share of the outer softmax, 0 below the cut-off.
fn miss_share(score: f32, cutoff: f32) -> f32 {
    let share = decay(score - outer_max) / outer_sum;
    return select(share, 0.0, share < cutoff);
}

var<workgroup> parts: array<vec4<f32>, WORKGROUP>;

// Sums a vector over the threads that hold the same coordinates; those of the first `QUADS` threads are whole.
fn combine_parts(part: vec4<f32>, thread: u32) -> vec4<f32> {
    parts[thread] = part;
    workgroupBarrier();
    var sum = vec4<f32>(0.0);
    if (thread < QUADS) {
        for (var i = thread; i < QUADS * SPLIT; i += QUADS) {
            sum += parts[i];
        }
    }
    return sum;
}

