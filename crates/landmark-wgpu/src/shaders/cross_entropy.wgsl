// From rows of logits: what each row adds to the loss, and its most likely id, the lowest of equals. A workgroup a row.

var<workgroup> tops: array<f32, WORKGROUP>;
var<workgroup> ids: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let local = group_index(group, groups);
    if (local >= params.rows) {
        return;
    }
    let row = params.first + local;
    let start = local * params.vocab;
    var top = NOTHING;
    var id = 0u;
    for (var v = thread; v < params.vocab; v += WORKGROUP) {
        let logit = logits_one(start + v);
        if (logit > top) {
            top = logit;
            id = v;
        }
    }
    tops[thread] = top;
    ids[thread] = id;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            let other = tops[thread + half];
            if (other > tops[thread] || (other == tops[thread] && ids[thread + half] < ids[thread])) {
                tops[thread] = other;
                ids[thread] = ids[thread + half];
            }
        }
        workgroupBarrier();
    }
    top = tops[0];
    id = ids[0];
    workgroupBarrier();
    var sum = 0.0;
    for (var v = thread; v < params.vocab; v += WORKGROUP) {
        sum += exp(logits_one(start + v) - top);
    }
    tops[thread] = sum;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            tops[thread] += tops[thread + half];
        }
        workgroupBarrier();
    }
    if (thread == 0u) {
        let wanted = targets_at(row);
        var loss = 0.0;
        if (wanted >= i32(params.vocab)) {
            atomicMax(&status[params.check], u32(wanted) + 1u);
        } else if (wanted >= 0) {
            loss = top + log(tops[0]) - logits_one(start + u32(wanted));
        }
        losses[row] = loss;
        predictions_set(row, id);
    }
}
