// Rows moved between tensors with other columns, rows and types (CopyRows), constants (Fill), conversions.
//
// FROM_T, TO_T: element types. ADD: += instead of =. WIDE: elements of a thread, a power of two to which starts, strides
// and widths are all aligned; the launcher finds the largest.
#include "common.cuh"

template <int N> __device__ __forceinline__ void move(storage<TO_T> *to, const storage<FROM_T> *from) {
    float v[N];
    load<FROM_T>(v, from);
    if (ADD) {
        float there[N];
        load<TO_T>(there, to);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += there[i];
    }
    store<TO_T>(to, v);
}

// grid (pieces of a row's width, rows, batch); strides in elements.
extern "C" __global__ void __launch_bounds__(256)
copy_rows(const storage<FROM_T> *from, storage<TO_T> *to, i64 from_batch, i64 to_batch, int from_row, int to_row, int width,
          int rows) {
    wait_for_launch_ahead();
    const int vectors = width / WIDE;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (i64)rows * vectors; i += (i64)gridDim.x * blockDim.x) {
        const int row = i / vectors, col = (int)(i % vectors) * WIDE;
        move<WIDE>(to + blockIdx.y * to_batch + (i64)row * to_row + col, from + blockIdx.y * from_batch + (i64)row * from_row + col);
    }
}

extern "C" __global__ void __launch_bounds__(256) convert(const storage<FROM_T> *from, storage<TO_T> *to, i64 n) {
    wait_for_launch_ahead();
    const i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * 8;
    if (i + 8 <= n) {
        move<8>(to + i, from + i);
    } else {
        for (i64 j = i; j < n; j++) move<1>(to + j, from + j);
    }
}

extern "C" __global__ void __launch_bounds__(256) fill(storage<TO_T> *out, i64 n, float value) {
    wait_for_launch_ahead();
    const i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * 8;
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = value;
    if (i + 8 <= n) {
        store<TO_T>(out + i, v);
    } else {
        for (i64 j = i; j < n; j++) out[j] = from_f32<TO_T>(value);
    }
}
