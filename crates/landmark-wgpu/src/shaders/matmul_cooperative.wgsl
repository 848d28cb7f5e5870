// out (=|+=) scale * a * transpose(b) + bias, for many rows, on the device's matrix units: a (M, K) and b (N, K) as f16,
// sums in f32.
//
// A workgroup of eight subgroups makes a tile of 128 x 128 results, each subgroup 64 x 32 of them, in eight matrices of
// 16 x 16. Operands pass through workgroup memory 32 columns at a time, as they are; what comes next is fetched while the
// matrix units work. Rows there are 40 elements apart, so that the rows of a matrix lie in different banks. Workgroups go down
// the rows of a first: those that run together share a few rows of b, and all of a stays near. What a thread brings has a name
// each, not a place in an array: compilers keep arrays that a loop indexes in memory.

const TILE: u32 = 128u;
const DEPTH: u32 = 32u;
// In vectors.
const STRIDE: u32 = 10u;
// Rows of a tile between two vectors that a thread brings.
const APART: u32 = 32u;

var<workgroup> a_tile: array<vec4<f16>, 1280>;
var<workgroup> b_tile: array<vec4<f16>, 1280>;
// A matrix of results for each subgroup.
var<workgroup> results: array<f32, 2048>;

// The element at which a row of an operand begins. Behind the last row comes the last one again: its results are not stored.
fn a_start(row: u32) -> u32 {
    return (params.above + min(row, params.m - 1u)) * params.k;
}

fn b_start(row: u32) -> u32 {
    return min(row, params.n - 1u) * params.k;
}

// Elements k .. k + 4 of a row; behind its end there are zeros.
fn a_piece(start: u32, k: u32) -> vec4<f16> {
    let at = min(k, (params.k - 1u) & ~3u);
    return select(vec4<f16>(), a_vector(start + at, valid_of(at, params.k)), k < params.k);
}

fn b_piece(start: u32, k: u32) -> vec4<f16> {
    let at = min(k, (params.k - 1u) & ~3u);
    return select(vec4<f16>(), b_vector(start + at, valid_of(at, params.k)), k < params.k);
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
    // What this thread brings: vectors of one column, APART rows apart.
    let row = thread >> 3u;
    let col = thread & 7u;
    let first = 4u * col;
    let a_start0 = a_start(first_row + row);
    let a_start1 = a_start(first_row + row + 1u * APART);
    let a_start2 = a_start(first_row + row + 2u * APART);
    let a_start3 = a_start(first_row + row + 3u * APART);
    let b_start0 = b_start(first_col + row);
    let b_start1 = b_start(first_col + row + 1u * APART);
    let b_start2 = b_start(first_col + row + 2u * APART);
    let b_start3 = b_start(first_col + row + 3u * APART);
    var a_next0 = a_piece(a_start0, first);
    var a_next1 = a_piece(a_start1, first);
    var a_next2 = a_piece(a_start2, first);
    var a_next3 = a_piece(a_start3, first);
    var b_next0 = b_piece(b_start0, first);
    var b_next1 = b_piece(b_start1, first);
    var b_next2 = b_piece(b_start2, first);
    var b_next3 = b_piece(b_start3, first);
    let at = row * STRIDE + col;
    for (var k = 0u; k < params.k; k += DEPTH) {
        a_tile[at] = a_next0;
        a_tile[at + 1u * APART * STRIDE] = a_next1;
        a_tile[at + 2u * APART * STRIDE] = a_next2;
        a_tile[at + 3u * APART * STRIDE] = a_next3;
        b_tile[at] = b_next0;
        b_tile[at + 1u * APART * STRIDE] = b_next1;
        b_tile[at + 2u * APART * STRIDE] = b_next2;
        b_tile[at + 3u * APART * STRIDE] = b_next3;
        workgroupBarrier();
        let next = k + DEPTH + first;
        a_next0 = a_piece(a_start0, next);
        a_next1 = a_piece(a_start1, next);
        a_next2 = a_piece(a_start2, next);
        a_next3 = a_piece(a_start3, next);
        b_next0 = b_piece(b_start0, next);
        b_next1 = b_piece(b_start1, next);
        b_next2 = b_piece(b_start2, next);
        b_next3 = b_piece(b_start3, next);
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left * STRIDE], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[(left + 16u) * STRIDE], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top * STRIDE], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[(top + 16u) * STRIDE], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[(top + 32u) * STRIDE], STRIDE);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[(top + 48u) * STRIDE], STRIDE);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
        }
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left * STRIDE + 4u], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[(left + 16u) * STRIDE + 4u], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top * STRIDE + 4u], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[(top + 16u) * STRIDE + 4u], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[(top + 32u) * STRIDE + 4u], STRIDE);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[(top + 48u) * STRIDE + 4u], STRIDE);
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
