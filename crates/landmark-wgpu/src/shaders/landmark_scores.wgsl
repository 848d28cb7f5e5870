// out[b, h, t, j] = q[b, skip + t, h] . rope(landmark of cached block j) / sqrt(D).
//
// All old blocks stand at one position, which is taken off the queries once; the few last ones have a further turn of
// their own. A workgroup scores QUERIES queries of a head against LANDMARKS blocks, a thread one pair.

const LANDMARKS: u32 = WORKGROUP / QUERIES;

var<workgroup> queries: array<Pairs, QUERIES * UNITS>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let h = group.z % params.heads;
    let b = group.z / params.heads;
    let state = state_of(lengths_at(b));
    let first_block = group.x * LANDMARKS;
    if (first_block >= state.cached) {
        return;
    }
    let first_query = group.y * QUERIES;
    for (var i = thread; i < QUERIES * UNITS; i += WORKGROUP) {
        let t = min(first_query + i / UNITS, params.tokens - 1u);
        let row = b * (params.skip + params.tokens) + params.skip + t;
        let q = q_pairs(row * params.q_cols + params.q_start + h * HEAD, i % UNITS);
        queries[i] = turn(q, unit_angles(-f32(params.block - 1u), i % UNITS));
    }
    workgroupBarrier();
    let t = first_query + thread / LANDMARKS;
    let j = first_block + thread % LANDMARKS;
    if (t >= params.tokens || j >= state.cached) {
        return;
    }
    let key = ((b * params.kv_heads + h / params.share) * (params.blocks + 1u) + slot_of(state, j)) * HEAD;
    let index = stingy_index(state, j);
    var score = 0.0;
    for (var unit = 0u; unit < UNITS; unit++) {
        let q = queries[thread / LANDMARKS * UNITS + unit];
        let k = landmarks_pairs(key, unit);
        if (index == 0u) {
            score += dot(q.a, k.a) + dot(q.b, k.b);
        } else {
            score += dot_turned(q, k, unit_angles(f32(index * params.block), unit));
        }
    }
    out_put_one(((b * params.heads + h) * params.tokens + t) * params.blocks + j, score * params.scale);
}
