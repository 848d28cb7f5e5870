// Sums over the threads of a workgroup, by halves; the first thread has the sum.

var<workgroup> partial: array<vec4<f32>, WORKGROUP>;

fn combine(v: vec4<f32>, thread: u32) -> vec4<f32> {
    partial[thread] = v;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            partial[thread] += partial[thread + half];
        }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

