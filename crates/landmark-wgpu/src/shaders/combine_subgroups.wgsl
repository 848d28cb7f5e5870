// Sums over the threads of a workgroup, by subgroups; the first thread has the sum.

var<workgroup> partial: array<vec4<f32>, WORKGROUP>;

fn combine(v: vec4<f32>, thread: u32) -> vec4<f32> {
    let of_subgroup = subgroupAdd(v);
    if (lane == 0u) {
        partial[subgroup] = of_subgroup;
    }
    workgroupBarrier();
    var sum = vec4<f32>(0.0);
    if (thread == 0u) {
        for (var i = 0u; i < subgroups; i++) {
            sum += partial[i];
        }
    }
    workgroupBarrier();
    return sum;
}

