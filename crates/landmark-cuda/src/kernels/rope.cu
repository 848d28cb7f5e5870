// Rotary positions: every pair of coordinates of every head turns by position * frequency.
//
// A block takes ROWS rows. Sines and cosines are computed once for all heads of a row, into shared memory, by the
// accurate functions: positions reach a million, and the fast ones lose their phase there. Neighbouring columns of
// one tensor that turn alike (the queries and keys of a fused qkv) are one launch.
//
// X_T: element type of x and out. FREQUENCY_T. HEAD_DIM. HALVES: pairs (i, i + HEAD_DIM/2) instead of (2i, 2i + 1).
// WIDE: pairs of a thread, so that loads are wide. INVERSE: turn back.
#include "common.cuh"

constexpr int PAIRS = HEAD_DIM / 2;

extern "C" __global__ void __launch_bounds__(256)
rope(const storage<X_T> *x, storage<X_T> *out, const int *positions, const storage<FREQUENCY_T> *frequencies, int rows, int width,
     int x_stride, int out_stride) {
    extern __shared__ float2 turns[]; // ROWS x PAIRS
    wait_for_launch_ahead();
    const int first = blockIdx.x * ROWS;
    for (int i = threadIdx.x; i < ROWS * PAIRS; i += 256) {
        const int row = first + i / PAIRS;
        if (row < rows) {
            const float position = (float)(INVERSE ? -positions[row] : positions[row]);
            float sine, cosine;
            sincosf(position * to_f32<FREQUENCY_T>(frequencies[i % PAIRS]), &sine, &cosine);
            turns[i] = make_float2(sine, cosine);
        }
    }
    __syncthreads();
    const int vectors = width / 2 / WIDE; // of a row
    for (int i = threadIdx.x; i < ROWS * vectors; i += 256) {
        const int r = i / vectors, row = first + r, pair = i % vectors * WIDE;
        if (row >= rows) break;
        const int head = pair / PAIRS, within = pair % PAIRS;
        const float2 *turn = turns + r * PAIRS + within;
        const storage<X_T> *from = x + (i64)row * x_stride + head * HEAD_DIM;
        storage<X_T> *to = out + (i64)row * out_stride + head * HEAD_DIM;
        if (HALVES) {
            float a[WIDE], b[WIDE];
            load<X_T>(a, from + within);
            load<X_T>(b, from + PAIRS + within);
#pragma unroll
            for (int j = 0; j < WIDE; j++) {
                const float s = turn[j].x, c = turn[j].y, t = a[j];
                a[j] = t * c - b[j] * s;
                b[j] = b[j] * c + t * s;
            }
            store<X_T>(to + within, a);
            store<X_T>(to + PAIRS + within, b);
        } else {
            float a[2 * WIDE];
            load<X_T>(a, from + 2 * within);
#pragma unroll
            for (int j = 0; j < WIDE; j++) {
                const float s = turn[j].x, c = turn[j].y, t = a[2 * j];
                a[2 * j] = t * c - a[2 * j + 1] * s;
                a[2 * j + 1] = a[2 * j + 1] * c + t * s;
            }
            store<X_T>(to + 2 * within, a);
        }
    }
}
