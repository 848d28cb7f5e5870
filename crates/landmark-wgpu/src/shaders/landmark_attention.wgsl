// Landmark attention of one query by one workgroup: forward pass, with the log of the outer sum.

var<workgroup> query: array<vec4<f32>, QUADS>;
var<workgroup> token_score: f32;

// Score of a row of the keys.
fn score_of(key: u32) -> f32 {
    var score = 0.0;
    for (var i = 0u; i < QUADS; i++) {
        score += dot(query[i], k_quad(key + 4u * i, valid_of(4u * i, HEAD)));
    }
    return score * params.scale;
}

// The first landmark at or behind token `from`, or `end`. Looks at no more than WORKGROUP tokens where landmarks are
// anywhere: then `end` is that far.
fn next_landmark(b: u32, start: u32, end: u32) -> u32 {
    if (BLOCKS == 1u) {
        let phase = blocks_at(b);
        return min(end, start + params.block - 1u - (start + phase) % params.block);
    }
    if (BLOCKS == 2u) {
        var l = start;
        while (l < end && blocks_at(b * params.tokens + l) == 0u) {
            l++;
        }
        return l;
    }
    return end;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let task = group_index(group, groups);
    if (task >= params.batch * params.heads * params.queries) {
        return;
    }
    let i = task % params.queries;
    let h = task / params.queries % params.heads;
    let b = task / params.queries / params.heads;
    let shift = select(0u, 1u, MISS);
    let q = (b * params.queries + i) * params.q_cols + params.q_start + h * HEAD;
    let k = b * params.keys * params.k_cols + params.k_start + h / params.share * HEAD;
    let v = b * params.keys * params.v_cols + params.v_start + h / params.share * HEAD;
    if (thread < QUADS) {
        query[thread] = q_quad(q + 4u * thread, valid_of(4u * thread, HEAD));
    }
    workgroupBarrier();
    begin_query();
    var miss = 0.0;
    if (MISS) {
        if (thread == 0u) {
            token_score = score_of(k);
        }
        workgroupBarrier();
        miss = token_score;
        admit_miss(miss);
    }
    // The context-miss token itself attends to nothing.
    let has_keys = !(MISS && i == 0u);
    let own = params.keys - params.queries + i - shift;
    let column = thread % QUADS;
    var start = first_key_at(b);
    while (has_keys && start <= own) {
        // A piece of a block: its keys, and the landmark behind them if the piece ends with one.
        let far = min(own + 1u, start + WORKGROUP);
        let landmark = next_landmark(b, start, far);
        let count = landmark - start;
        let row = start + shift + thread;
        var score = 0.0;
        if (thread < count || (thread == count && landmark < far)) {
            score = score_of(k + row * params.k_cols);
        }
        if (thread == count) {
            landmark_score = score;
        }
        // Where the tile is full its landmark has no thread: it is the first key of the next tile.
        tile_weights(score, thread < count, count, thread);
        if (thread < QUADS * SPLIT) {
            for (var j = thread / QUADS; j < count; j += SPLIT) {
                let e = v + (start + shift + j) * params.v_cols + 4u * column;
                inner += weights[j] * v_quad(e, valid_of(4u * column, HEAD));
            }
        }
        let closing = landmark_score;
        workgroupBarrier();
        start = landmark;
        if (landmark < far) {
            if (landmark < own) {
                close_block(closing, MISS && gates_at(b * params.tokens + landmark) != 0u);
            }
            start = landmark + 1u;
        }
    }
    if (has_keys) {
        close_own_block();
    }
    let has_any = has_keys && outer_sum > 0.0;
    var result = vec4<f32>(0.0);
    if (has_any) {
        result = outer / outer_sum;
        if (MISS && gated_sum > 0.0) {
            result += miss_share(miss, 0.0) * gated / gated_sum;
        }
    }
    let whole = combine_parts(result, thread);
    if (thread < QUADS) {
        let e = (b * params.queries + i) * params.heads * HEAD + h * HEAD + 4u * thread;
        out_put(e, whole, valid_of(4u * thread, HEAD));
    }
    if (thread == 0u) {
        lse_put_one(task, select(params.minus_infinity, outer_max + log(outer_sum), has_any));
    }
}
