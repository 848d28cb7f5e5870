// out (=|+=) scale * a * transpose(b) + bias, for many rows, on the device's matrix units: a (M, K) and b (N, K) as f16,
// sums in f32.
//
// A workgroup of eight subgroups makes a tile of 128 x 128 results, each subgroup 64 x 32 of them, in eight matrices of
// 16 x 16. Operands pass through workgroup memory 64 columns at a time, as they are; what comes next is fetched while the
// matrix units work. Rows there are 72 elements apart, so that the rows of a matrix lie in different banks. Workgroups go down
// the rows of a first: those that run together share a few rows of b, and all of a stays near.

const TILE: u32 = 128u;
const DEPTH: u32 = 64u;
// In vectors.
const STRIDE: u32 = 18u;
// Vectors of a tile that a thread brings, and how many rows of the tile lie between two of them.
const BROUGHT: u32 = 8u;
const APART: u32 = 16u;

var<workgroup> a_tile: array<vec4<f16>, 2304>;
var<workgroup> b_tile: array<vec4<f16>, 2304>;
// A matrix of results for each subgroup.
var<workgroup> results: array<f32, 2048>;

// Elements k .. k + 4 of a row that begins at element `start`; behind the end there are zeros.
fn a_piece(start: u32, k: u32) -> vec4<f16> {
    if (k >= params.k) {
        return vec4<f16>();
    }
    return a_vector(start + k, valid_of(k, params.k));
}

fn b_piece(start: u32, k: u32) -> vec4<f16> {
    if (k >= params.k) {
        return vec4<f16>();
    }
    return b_vector(start + k, valid_of(k, params.k));
}

// Two vectors of the matrix of results that the subgroup has put down.
fn put_down(subgroup: u32, lane: u32, first_row: u32, first_col: u32) {
    workgroupBarrier();
    let row = lane >> 1u;
    let col = 8u * (lane & 1u);
    let at = 256u * subgroup + 16u * row + col;
    store(first_row + row, first_col + col, vec4<f32>(results[at], results[at + 1u], results[at + 2u], results[at + 3u]));
    store(first_row + row, first_col + col + 4u,
        vec4<f32>(results[at + 4u], results[at + 5u], results[at + 6u], results[at + 7u]));
    workgroupBarrier();
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.x * TILE;
    let first_col = group.y * TILE;
    let subgroup = thread >> 5u;
    let lane = thread & 31u;
    let top = 64u * (subgroup & 1u);
    let left = 32u * (subgroup >> 1u);
    var c00: coop_mat16x16<f32, C>;
    var c01: coop_mat16x16<f32, C>;
    var c10: coop_mat16x16<f32, C>;
    var c11: coop_mat16x16<f32, C>;
    var c20: coop_mat16x16<f32, C>;
    var c21: coop_mat16x16<f32, C>;
    var c30: coop_mat16x16<f32, C>;
    var c31: coop_mat16x16<f32, C>;
    // What this thread brings: vectors of one column, APART rows apart. Behind the last row comes the last one again: its
    // results are not stored.
    let row = thread >> 4u;
    let col = thread & 15u;
    var a_start: array<u32, BROUGHT>;
    var b_start: array<u32, BROUGHT>;
    var a_next: array<vec4<f16>, BROUGHT>;
    var b_next: array<vec4<f16>, BROUGHT>;
    for (var i = 0u; i < BROUGHT; i++) {
        a_start[i] = (params.above + min(first_row + row + APART * i, params.m - 1u)) * params.k;
        b_start[i] = min(first_col + row + APART * i, params.n - 1u) * params.k;
        a_next[i] = a_piece(a_start[i], 4u * col);
        b_next[i] = b_piece(b_start[i], 4u * col);
    }
    for (var k = 0u; k < params.k; k += DEPTH) {
        for (var i = 0u; i < BROUGHT; i++) {
            a_tile[(row + APART * i) * STRIDE + col] = a_next[i];
            b_tile[(row + APART * i) * STRIDE + col] = b_next[i];
        }
        workgroupBarrier();
        for (var i = 0u; i < BROUGHT; i++) {
            a_next[i] = a_piece(a_start[i], k + DEPTH + 4u * col);
            b_next[i] = b_piece(b_start[i], k + DEPTH + 4u * col);
        }
        for (var step = 0u; step < DEPTH / 4u; step += 4u) {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left * STRIDE + step], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[(left + 16u) * STRIDE + step], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top * STRIDE + step], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[(top + 16u) * STRIDE + step], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[(top + 32u) * STRIDE + step], STRIDE);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[(top + 48u) * STRIDE + step], STRIDE);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
        }
        workgroupBarrier();
    }
    let own = 256u * subgroup;
    let at_row = first_row + top;
    let at_col = first_col + left;
    coopStoreT(c00, &results[own], 16u);
    put_down(subgroup, lane, at_row, at_col);
    coopStoreT(c01, &results[own], 16u);
    put_down(subgroup, lane, at_row, at_col + 16u);
    coopStoreT(c10, &results[own], 16u);
    put_down(subgroup, lane, at_row + 16u, at_col);
    coopStoreT(c11, &results[own], 16u);
    put_down(subgroup, lane, at_row + 16u, at_col + 16u);
    coopStoreT(c20, &results[own], 16u);
    put_down(subgroup, lane, at_row + 32u, at_col);
    coopStoreT(c21, &results[own], 16u);
    put_down(subgroup, lane, at_row + 32u, at_col + 16u);
    coopStoreT(c30, &results[own], 16u);
    put_down(subgroup, lane, at_row + 48u, at_col);
    coopStoreT(c31, &results[own], 16u);
    put_down(subgroup, lane, at_row + 48u, at_col + 16u);
}
