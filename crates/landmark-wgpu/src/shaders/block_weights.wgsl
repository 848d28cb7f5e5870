// The grouped softmax of a query by a thread that works alone: scores become weights where they are.
//
// A block's keys are weighed within the block, and its landmark's score in the outer softmax passes to them; the query's
// own block passes into the outer softmax key by key. Landmarks get no weight, nor do keys behind the query up to the end
// of its tile.

var<private> outer_max: f32;
var<private> outer_sum: f32;

// e to a power that is never positive.
fn decay(x: f32) -> f32 {
    return exp(max(x, -87.0));
}

// Exponentials in place of scores, relative to the largest of them: that one, and their sum.
fn exponentials(at: u32, count: u32) -> vec2<f32> {
    var top = NOTHING;
    for (var i = 0u; i < count; i++) {
        top = max(top, scores[at + i]);
    }
    var sum = 0.0;
    for (var i = 0u; i < count; i++) {
        let weight = decay(scores[at + i] - top);
        scores[at + i] = weight;
        sum += weight;
    }
    return vec2<f32>(top, sum);
}

fn admit(score: f32, mass: f32) {
    let top = max(outer_max, score);
    outer_sum = outer_sum * decay(outer_max - top) + mass * decay(score - top);
    outer_max = top;
}

// A block that ends at its landmark, in whose place is left what its exponentials are relative to in the outer softmax.
fn admit_block(at: u32) {
    let landmark = at + params.block - 1u;
    let closing = scores[landmark];
    let sum = exponentials(at, params.block - 1u).y;
    admit(closing, 1.0);
    scores[landmark] = closing - log(max(sum, 1.0));
}

fn weigh(at: u32, count: u32, level: f32) {
    let factor = decay(level - outer_max) / outer_sum;
    for (var i = 0u; i < count; i++) {
        scores[at + i] *= factor;
    }
}

fn weigh_block(at: u32) {
    let landmark = at + params.block - 1u;
    weigh(at, params.block - 1u, scores[landmark]);
    scores[landmark] = 0.0;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = row_of(group_index(group, groups) * WORKGROUP + thread);
    if (!row.is_there) {
        return;
    }
    let state = state_of(lengths_at(row.b));
    outer_max = NOTHING;
    outer_sum = 0.0;
    for (var slot = 0u; slot < min(params.slots, state.retrieved); slot++) {
        if (chosen_at(row.choice + slot) != NO_BLOCK) {
            let at = row.scores + slot * params.block;
            shares_put_one(row.choice + slot, scores[at + params.block - 1u]);
            admit_block(at);
        }
    }
    let run = row.scores + params.slots * params.block;
    let own = state.unfinished + row.t;
    let last = own / params.block * params.block;
    for (var start = 0u; start < last; start += params.block) {
        admit_block(run + start);
    }
    let members = min(own + 1u - last, params.block - 1u);
    let of_last = exponentials(run + last, members);
    admit(of_last.x, of_last.y);

    for (var slot = 0u; slot < params.slots; slot++) {
        let is_there = slot < state.retrieved && chosen_at(row.choice + slot) != NO_BLOCK;
        var share = 0.0;
        if (is_there) {
            weigh_block(row.scores + slot * params.block);
            share = decay(shares_one(row.choice + slot) - outer_max) / outer_sum;
        }
        shares_put_one(row.choice + slot, share);
    }
    for (var start = 0u; start < last; start += params.block) {
        weigh_block(run + start);
    }
    weigh(run + last, members, of_last.x);
    let end = state.unfinished + params.first_row + ((row.t - params.first_row) / 8u + 1u) * 8u;
    for (var i = last + members; i < end; i++) {
        scores[run + i] = 0.0;
    }
}
