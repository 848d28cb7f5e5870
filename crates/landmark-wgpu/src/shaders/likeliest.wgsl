// The likeliest token of each row of logits, by one workgroup: of equal ones the lowest, never params.banned; NO_TOKEN where
// a logit is no number or +inf, or nothing is left. Numbers are told by their bits: arithmetic need not know others.

const NO_TOKEN: u32 = 0xffffffffu;
const INFINITY: u32 = 0x7f800000u;

var<workgroup> scores: array<f32, WORKGROUP>;
var<workgroup> tokens: array<u32, WORKGROUP>;
var<workgroup> broken: array<u32, WORKGROUP>;

var<private> score: f32;
var<private> token: u32;
var<private> is_broken: bool;

// The token `n` workgroups behind, or the last one again.
fn behind(i: u32, n: u32) -> u32 {
    return min(i + n * WORKGROUP, params.vocabulary - 1u);
}

fn consider(i: u32, logit: f32) {
    let bits = bitcast<u32>(logit);
    is_broken = is_broken || (bits & 0x7fffffffu) > INFINITY || bits == INFINITY;
    if (bits != (INFINITY | 0x80000000u) && i != params.banned && (token == NO_TOKEN || logit > score)) {
        score = logit;
        token = i;
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group_index(group, groups);
    if (row >= params.rows) {
        return;
    }
    score = 0.0;
    token = NO_TOKEN;
    is_broken = false;
    let start = row * params.vocabulary;
    // Four reads under way.
    for (var i = thread; i < params.vocabulary; i += 4u * WORKGROUP) {
        let l0 = logits_one(start + i);
        let l1 = logits_one(start + behind(i, 1u));
        let l2 = logits_one(start + behind(i, 2u));
        let l3 = logits_one(start + behind(i, 3u));
        consider(i, l0);
        consider(behind(i, 1u), l1);
        consider(behind(i, 2u), l2);
        consider(behind(i, 3u), l3);
    }
    scores[thread] = score;
    tokens[thread] = token;
    broken[thread] = select(0u, 1u, is_broken);
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            broken[thread] |= broken[thread + half];
            let other = tokens[thread + half];
            let theirs = scores[thread + half];
            let is_better = theirs > scores[thread] || (theirs == scores[thread] && other < tokens[thread]);
            if (other != NO_TOKEN && (tokens[thread] == NO_TOKEN || is_better)) {
                scores[thread] = theirs;
                tokens[thread] = other;
            }
        }
    }
    workgroupBarrier();
    if (thread == 0u) {
        out_set(row, select(tokens[0], NO_TOKEN, broken[0] != 0u));
    }
}
