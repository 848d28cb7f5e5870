// out (=|+=) scale * a * transpose(b) + bias, for many rows, on the device's matrix units: a (M, K) and b (N, K) as f16,
// sums in f32.
//
// Weights in blocks of 8 or 4 bits become f16 on the way into workgroup memory.
//
// A workgroup of eight subgroups makes a tile of 128 x 128 results, each subgroup 64 x 32 of them, in eight matrices of
// 16 x 16. Operands pass through workgroup memory 64 columns at a time, as they are. Rows there are 72 elements apart, so that
// the rows of a matrix lie in different banks. Workgroups go down the rows of a first: those that run together share a few rows
// of b, and all of a stays near.
//
// What comes next is fetched before the matrix units work, and put down behind them in the same turn of the loop: where it is
// carried from turn to turn, compilers that unroll the loop fetch it only when it is put down. It travels as words, since
// compilers take vectors of f16 apart. What a thread brings has a name each, not a place in an array: compilers keep arrays that
// a loop indexes in memory. Nothing is chosen of what was fetched where rows are whole slices (WHOLE): a choice would be made as
// soon as possible, and wait for it among the products.

const TILE: u32 = 128u;
const DEPTH: u32 = 64u;
// In vectors.
const STRIDE: u32 = 18u;
// Rows of a tile between two pieces that a thread brings.
const APART: u32 = 32u;

// Rows of nine pieces of eight elements, the last of them for the stride's sake alone.
var<workgroup> a_tile: array<array<array<vec4<f16>, 2>, 9>, 128>;
var<workgroup> b_tile: array<array<array<vec4<f16>, 2>, 9>, 128>;
// A matrix of results for each subgroup.
var<workgroup> results: array<vec4<f32>, 512>;

// The element at which a row of an operand begins. Behind the last row comes the last one again: its results are not stored.
fn a_start(row: u32) -> u32 {
    return (params.above + min(row, params.m - 1u)) * params.k;
}

fn b_start(row: u32) -> u32 {
    return min(row, params.n - 1u) * params.k;
}

// The column of the slice behind. Behind the last one of whole slices it comes again, for nobody.
fn behind(k: u32) -> u32 {
    if (WHOLE) {
        return min(k + DEPTH, params.k - DEPTH);
    }
    return k + DEPTH;
}

// Elements k .. k + 8 of a row; behind its end, its last ones again.
fn a_piece(start: u32, k: u32) -> vec4<u32> {
    if (WHOLE) {
        return a_oct(start + k, 8u);
    }
    let at = min(k, (params.k - 1u) & ~7u);
    return a_oct(start + at, min(8u, params.k - at));
}

fn b_piece(start: u32, k: u32) -> vec4<u32> {
    if (WHOLE) {
        return b_oct(start + k, 8u);
    }
    let at = min(k, (params.k - 1u) & ~7u);
    return b_oct(start + at, min(8u, params.k - at));
}

// What is put down of elements k .. k + 8: zeros behind a row's end.
fn inside(quad: vec4<f16>, k: u32) -> vec4<f16> {
    if (WHOLE) {
        return quad;
    }
    return select(vec4<f16>(), quad, k < params.k);
}

fn a_keep(row: u32, col: u32, piece: vec4<u32>, start: u32, k: u32) {
    let quads = a_quads(piece, start + k);
    a_tile[row][col][0] = inside(quads[0], k);
    a_tile[row][col][1] = inside(quads[1], k);
}

fn b_keep(row: u32, col: u32, piece: vec4<u32>, start: u32, k: u32) {
    let quads = b_quads(piece, start + k);
    b_tile[row][col][0] = inside(quads[0], k);
    b_tile[row][col][1] = inside(quads[1], k);
}

// Two vectors of the matrix of results that the subgroup has put down.
fn put_down(subgroup: u32, lane: u32, first_row: u32, first_col: u32) {
    workgroupBarrier();
    let row = lane >> 2u;
    let col = lane & 3u;
    let at = 64u * subgroup + 4u * row + col;
    let upper = results[at];
    let lower = results[at + 32u];
    store(first_row + row, first_col + 4u * col, upper);
    store(first_row + row + 8u, first_col + 4u * col, lower);
    workgroupBarrier();
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.x * TILE;
    let first_col = group.y * TILE;
    let subgroup = thread >> 5u;
    let lane = thread & 31u;
    let top = 64u * (subgroup & 1u);
    let left = 32u * ((subgroup >> 1u) & 3u);
    var c00: coop_mat16x16<f32, C>;
    var c01: coop_mat16x16<f32, C>;
    var c10: coop_mat16x16<f32, C>;
    var c11: coop_mat16x16<f32, C>;
    var c20: coop_mat16x16<f32, C>;
    var c21: coop_mat16x16<f32, C>;
    var c30: coop_mat16x16<f32, C>;
    var c31: coop_mat16x16<f32, C>;
    // What this thread brings: pieces of one column, APART rows apart.
    let row = thread >> 3u;
    let col = thread & 7u;
    let first = 8u * col;
    let a_start0 = a_start(first_row + row);
    let a_start1 = a_start(first_row + row + 1u * APART);
    let a_start2 = a_start(first_row + row + 2u * APART);
    let a_start3 = a_start(first_row + row + 3u * APART);
    let b_start0 = b_start(first_col + row);
    let b_start1 = b_start(first_col + row + 1u * APART);
    let b_start2 = b_start(first_col + row + 2u * APART);
    let b_start3 = b_start(first_col + row + 3u * APART);
    a_keep(row, col, a_piece(a_start0, first), a_start0, first);
    a_keep(row + 1u * APART, col, a_piece(a_start1, first), a_start1, first);
    a_keep(row + 2u * APART, col, a_piece(a_start2, first), a_start2, first);
    a_keep(row + 3u * APART, col, a_piece(a_start3, first), a_start3, first);
    b_keep(row, col, b_piece(b_start0, first), b_start0, first);
    b_keep(row + 1u * APART, col, b_piece(b_start1, first), b_start1, first);
    b_keep(row + 2u * APART, col, b_piece(b_start2, first), b_start2, first);
    b_keep(row + 3u * APART, col, b_piece(b_start3, first), b_start3, first);
    workgroupBarrier();
    for (var k = 0u; k < params.k; k += DEPTH) {
        let next = behind(k) + first;
        let a_next0 = a_piece(a_start0, next);
        let a_next1 = a_piece(a_start1, next);
        let a_next2 = a_piece(a_start2, next);
        let a_next3 = a_piece(a_start3, next);
        let b_next0 = b_piece(b_start0, next);
        let b_next1 = b_piece(b_start1, next);
        let b_next2 = b_piece(b_start2, next);
        let b_next3 = b_piece(b_start3, next);
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left][0u][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left + 16u][0u][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top][0u][0], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 16u][0u][0], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 32u][0u][0], STRIDE);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 48u][0u][0], STRIDE);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
        }
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left][2u][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left + 16u][2u][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top][2u][0], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 16u][2u][0], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 32u][2u][0], STRIDE);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 48u][2u][0], STRIDE);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
        }
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left][4u][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left + 16u][4u][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top][4u][0], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 16u][4u][0], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 32u][4u][0], STRIDE);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 48u][4u][0], STRIDE);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
        }
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left][6u][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&b_tile[left + 16u][6u][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top][6u][0], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 16u][6u][0], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 32u][6u][0], STRIDE);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[top + 48u][6u][0], STRIDE);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
        }
        workgroupBarrier();
        a_keep(row, col, a_next0, a_start0, next);
        a_keep(row + 1u * APART, col, a_next1, a_start1, next);
        a_keep(row + 2u * APART, col, a_next2, a_start2, next);
        a_keep(row + 3u * APART, col, a_next3, a_start3, next);
        b_keep(row, col, b_next0, b_start0, next);
        b_keep(row + 1u * APART, col, b_next1, b_start1, next);
        b_keep(row + 2u * APART, col, b_next2, b_start2, next);
        b_keep(row + 3u * APART, col, b_next3, b_start3, next);
        workgroupBarrier();
    }
    let own = 64u * subgroup;
    let at_row = first_row + top;
    let at_col = first_col + left;
    coopStoreT(c00, &results[own], 4u);
    put_down(subgroup, lane, at_row, at_col);
    coopStoreT(c01, &results[own], 4u);
    put_down(subgroup, lane, at_row, at_col + 16u);
    coopStoreT(c10, &results[own], 4u);
    put_down(subgroup, lane, at_row + 16u, at_col);
    coopStoreT(c11, &results[own], 4u);
    put_down(subgroup, lane, at_row + 16u, at_col + 16u);
    coopStoreT(c20, &results[own], 4u);
    put_down(subgroup, lane, at_row + 32u, at_col);
    coopStoreT(c21, &results[own], 4u);
    put_down(subgroup, lane, at_row + 32u, at_col + 16u);
    coopStoreT(c30, &results[own], 4u);
    put_down(subgroup, lane, at_row + 48u, at_col);
    coopStoreT(c31, &results[own], 4u);
    put_down(subgroup, lane, at_row + 48u, at_col + 16u);
}
