// The likeliest token of each row of logits, by one workgroup: of equal ones the lowest, never params.banned; NO_TOKEN where
// a logit is no number or +inf, or nothing is left. Numbers are told by their bits: arithmetic need not know others.

const NO_TOKEN: u32 = 0xffffffffu;
const INFINITY: u32 = 0x7f800000u;

var<workgroup> scores: array<f32, WORKGROUP>;
var<workgroup> tokens: array<u32, WORKGROUP>;
var<workgroup> broken: array<u32, WORKGROUP>;

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
    var score = 0.0;
    var token = NO_TOKEN;
    var is_broken = false;
    for (var i = thread; i < params.vocabulary; i += WORKGROUP) {
        let logit = logits_one(row * params.vocabulary + i);
        let bits = bitcast<u32>(logit);
        is_broken = is_broken || (bits & 0x7fffffffu) > INFINITY || bits == INFINITY;
        if (bits != (INFINITY | 0x80000000u) && i != params.banned && (token == NO_TOKEN || logit > score)) {
            score = logit;
            token = i;
        }
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
