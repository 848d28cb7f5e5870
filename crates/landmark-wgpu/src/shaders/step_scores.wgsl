// landmark_scores of few queries: out[b, h, t, j] = q[b, skip + t, h] . rope(landmark of cached block j) / sqrt(D).
//
// A workgroup scores LANDMARKS blocks by one query. A group of threads goes along a landmark together, a unit of its
// coordinates each, so that what they read is one piece of memory, and each has four such reads under way.

const GROUPS: u32 = WORKGROUP / UNITS;
const LANDMARKS: u32 = 4u * GROUPS;
// Distance of the parts of scores, against bank conflicts.
const PITCH: u32 = LANDMARKS + 2u;

var<workgroup> sums: array<f32, UNITS * PITCH>;

// This thread's part of the score of cached block j by a query that the old blocks' position is taken off.
fn part(q: Pairs, k: Pairs, index: u32, unit: u32) -> f32 {
    if (index == 0u) {
        return dot(q.a, k.a) + dot(q.b, k.b);
    }
    return dot_turned(q, k, unit_angles(f32(index * params.block), unit));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let h = group.z % params.heads;
    let b = group.z / params.heads;
    let state = state_of(lengths_at(b));
    let first = group.x * LANDMARKS;
    if (first >= state.cached) {
        return;
    }
    let unit = thread % UNITS;
    let j = first + thread / UNITS;
    if (thread < GROUPS * UNITS) {
        let row = b * (params.skip + params.tokens) + params.skip + group.y;
        let query = q_pairs(row * params.q_cols + params.q_start + h * HEAD, unit);
        let ring = (b * params.kv_heads + h / params.share) * (params.blocks + 1u);
        let last = state.cached - 1u;
        let block = min(vec4<u32>(j, j + GROUPS, j + 2u * GROUPS, j + 3u * GROUPS), vec4<u32>(last));
        let k0 = landmarks_pairs((ring + slot_of(state, block.x)) * HEAD, unit);
        let k1 = landmarks_pairs((ring + slot_of(state, block.y)) * HEAD, unit);
        let k2 = landmarks_pairs((ring + slot_of(state, block.z)) * HEAD, unit);
        let k3 = landmarks_pairs((ring + slot_of(state, block.w)) * HEAD, unit);
        let q = turn(query, unit_angles(-f32(params.block - 1u), unit));
        let at = unit * PITCH + thread / UNITS;
        sums[at] = part(q, k0, stingy_index(state, block.x), unit);
        sums[at + GROUPS] = part(q, k1, stingy_index(state, block.y), unit);
        sums[at + 2u * GROUPS] = part(q, k2, stingy_index(state, block.z), unit);
        sums[at + 3u * GROUPS] = part(q, k3, stingy_index(state, block.w), unit);
    }
    workgroupBarrier();
    let scores = ((b * params.heads + h) * params.tokens + group.y) * params.blocks;
    for (var i = thread; i < min(LANDMARKS, state.cached - first); i += WORKGROUP) {
        var score = 0.0;
        for (var other = 0u; other < UNITS; other++) {
            score += sums[other * PITCH + i];
        }
        out_put_one(scores + first + i, score * params.scale);
    }
}
