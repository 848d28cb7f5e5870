// Sums over the rows of a matrix, in two stages of fixed order: pieces of rows, then the pieces.
//
// One launch with atomics would be half the work, and its bits would change from run to run.
//
// X_T, OUT_T: element types. ADD: += instead of =.
#include "common.cuh"

// grid (columns / 256, pieces), 256 threads: a thread sums one column over the rows of a piece. A warp reads 32
// consecutive elements of a row; several rows are in flight.
extern "C" __global__ void __launch_bounds__(256)
partial_sums(const storage<X_T> *x, float *partial, int rows, int cols, int rows_of_piece) {
    wait_for_launch_ahead();
    const int col = blockIdx.x * 256 + threadIdx.x;
    if (col >= cols) return;
    const int first = blockIdx.y * rows_of_piece, end = min(rows, first + rows_of_piece);
    const storage<X_T> *at = x + (i64)first * cols + col;
    float sum = 0.0f;
    int row = first;
    for (; row + 8 <= end; row += 8, at += 8 * (i64)cols) {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = to_f32<X_T>(at[i * (i64)cols]);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += v[i];
    }
    for (; row < end; row++, at += cols) sum += to_f32<X_T>(*at);
    partial[(i64)blockIdx.y * cols + col] = sum;
}

// grid (columns / 32), 256 threads: 8 warps take every eighth piece each, for 32 columns.
extern "C" __global__ void __launch_bounds__(256)
total(const float *partial, storage<OUT_T> *out, int pieces, int cols) {
    __shared__ float sums[8][32];
    wait_for_launch_ahead();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, col = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (col < cols) {
#pragma unroll 8
        for (int i = warp; i < pieces; i += 8) sum += partial[(i64)i * cols + col];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && col < cols) {
        sum = ADD ? to_f32<OUT_T>(out[col]) : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) sum += sums[i][lane];
        out[col] = from_f32<OUT_T>(sum);
    }
}
