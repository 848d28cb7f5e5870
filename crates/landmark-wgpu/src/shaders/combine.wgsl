// Sums of vectors over the threads of a workgroup, by halves; the first thread gets them.

var<workgroup> partial: array<vec4<f32>, WORKGROUP>;

fn combine(sums: ptr<function, array<vec4<f32>, SUMS>>, thread: u32) {
    for (var i = 0u; i < SUMS; i++) {
        partial[thread] = (*sums)[i];
        workgroupBarrier();
        for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
            if (thread < half) {
                partial[thread] += partial[thread + half];
            }
            workgroupBarrier();
        }
        (*sums)[i] = partial[0];
        workgroupBarrier();
    }
}
