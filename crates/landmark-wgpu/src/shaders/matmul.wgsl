// out (=|+=) scale * a * transpose(b) + bias, for many rows: a (M, K), b (N, K), out (M, N).
//
// A workgroup of 16 x 16 threads makes a tile of 64 x 64 results, each thread 4 x 4 of them. Operands pass through
// workgroup memory 32 columns at a time, turned so that four rows of one column are one vector. Half of the threads
// load a, the other half b.

const TILE: u32 = 64u;
const DEPTH: u32 = 32u;

// Column k, rows 4r .. 4r + 4 of the tile at k * 16 + r.
var<workgroup> a_tile: array<vec4<f32>, 512>;
var<workgroup> b_tile: array<vec4<f32>, 512>;

fn a_row(row: u32, k: u32, valid: u32) -> vec4<f32> {
    if (row >= params.m || valid == 0u) {
        return vec4<f32>(0.0);
    }
    return a_quad((params.above + row) * params.k + k, valid);
}

fn b_row(row: u32, k: u32, valid: u32) -> vec4<f32> {
    if (row >= params.n || valid == 0u) {
        return vec4<f32>(0.0);
    }
    return b_quad(row * params.k + k, valid);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.y * TILE;
    let first_col = group.x * TILE;
    let x = thread & 15u;
    let y = thread >> 4u;
    // What this thread loads: four rows and four columns.
    let slot = thread & 127u;
    let rows = slot >> 3u;
    let cols = 4u * (slot & 7u);
    var sum0 = vec4<f32>(0.0);
    var sum1 = vec4<f32>(0.0);
    var sum2 = vec4<f32>(0.0);
    var sum3 = vec4<f32>(0.0);
    for (var k = 0u; k < params.k; k += DEPTH) {
        let at = k + cols;
        let valid = select(0u, min(4u, params.k - at), at < params.k);
        if (thread < 128u) {
            let row = first_row + 4u * rows;
            let v = transpose(mat4x4<f32>(
                a_row(row, at, valid), a_row(row + 1u, at, valid), a_row(row + 2u, at, valid), a_row(row + 3u, at, valid)));
            for (var i = 0u; i < 4u; i++) {
                a_tile[(cols + i) * 16u + rows] = v[i];
            }
        } else {
            let row = first_col + 4u * rows;
            let v = transpose(mat4x4<f32>(
                b_row(row, at, valid), b_row(row + 1u, at, valid), b_row(row + 2u, at, valid), b_row(row + 3u, at, valid)));
            for (var i = 0u; i < 4u; i++) {
                b_tile[(cols + i) * 16u + rows] = v[i];
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i++) {
            let a = a_tile[i * 16u + y];
            let b = b_tile[i * 16u + x];
            sum0 += a.x * b;
            sum1 += a.y * b;
            sum2 += a.z * b;
            sum3 += a.w * b;
        }
        workgroupBarrier();
    }
    let row = first_row + 4u * y;
    let col = first_col + 4u * x;
    store(row, col, sum0);
    store(row + 1u, col, sum1);
    store(row + 2u, col, sum2);
    store(row + 3u, col, sum3);
}
