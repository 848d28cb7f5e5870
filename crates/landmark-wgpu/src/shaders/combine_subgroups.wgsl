// Sums of vectors over the threads of a workgroup, by subgroups; the first thread gets them. Once in a kernel.

// No subgroup has less than four threads.
var<workgroup> partial: array<array<vec4<f32>, SUMS>, WORKGROUP / 4u>;

fn combine(sums: ptr<function, array<vec4<f32>, SUMS>>, thread: u32) {
    for (var i = 0u; i < SUMS; i++) {
        let of_subgroup = subgroupAdd((*sums)[i]);
        if (lane == 0u) {
            partial[subgroup][i] = of_subgroup;
        }
    }
    workgroupBarrier();
    if (thread == 0u) {
        for (var i = 0u; i < SUMS; i++) {
            (*sums)[i] = partial[0][i];
            for (var other = 1u; other < subgroups; other++) {
                (*sums)[i] += partial[other][i];
            }
        }
    }
}
