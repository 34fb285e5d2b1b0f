// Rows of half types in shared memory, and their products on the tensor cores, for channel_attention_tensor.cu. Rows
// have kLength columns and lie kPitch<kLength> apart, an odd multiple of 16 bytes: the eight rows that an instruction
// reads at a time lie in different banks.
#pragma once

#include <cuda_pipeline.h>

#include "launch.h"
#include "mma.cuh"

namespace reidops {

template <int kLength>
constexpr int kPitch = kLength + 8;

// Starts the copy of rows row .. row + count - 1 of `from`, (channels, length), to `to`. Rows beyond the last become
// the first once more; columns beyond the last are left as they are. If the rows lie on multiples of 16 bytes, a thread
// copies 16 bytes of every step-th row.
template <int kLength, typename T>
__device__ __forceinline__ void stage_rows(const T* from, int row, int count, int channels, int length, bool aligned,
                                           T* to) {
  constexpr int kVector = 8, kVectors = kLength / kVector;
  const int present = row + count < channels ? count : channels - row;
  if (aligned) {
    const int step = blockDim.x / kVectors, column = threadIdx.x % kVectors * kVector;
    int r = threadIdx.x / kVectors;
    if (r >= step || column >= length) return;
    const T* source = from + int64_t(row + r) * length + column;
    to += r * kPitch<kLength> + column;
    for (; r < present; r += step, source += step * length, to += step * kPitch<kLength>) {
      __pipeline_memcpy_async(to, source, sizeof(T) * kVector);
    }
    for (; r < count; r += step, to += step * kPitch<kLength>) {
      __pipeline_memcpy_async(to, from + column, sizeof(T) * kVector);
    }
  } else {
    for (int e = threadIdx.x; e < count * kLength; e += blockDim.x) {
      const int r = e / kLength, c = e % kLength;
      if (c < length) to[r * kPitch<kLength> + c] = from[int64_t(r < present ? row + r : 0) * length + c];
    }
  }
}

// Zeros in the columns beyond the last of `count` rows.
template <int kLength, typename T>
__device__ __forceinline__ void clear_columns(T* rows, int count, int length) {
  const int padding = kLength - length;
  for (int e = threadIdx.x; e < count * padding; e += blockDim.x) {
    rows[e / padding * kPitch<kLength> + length + e % padding] = T(0.0f);
  }
}

// sums (32 rows of a by kColumns x 8 rows of b) = a b^T.
template <int kLength, int kColumns, typename T>
__device__ __forceinline__ void multiply_rows(const T* a, const T* b, float (&sums)[2][kColumns][4]) {
  const int lane = threadIdx.x % kWarp;
  const T* pairs = b + lane / 4 * kPitch<kLength> + lane % 4 * 2;
  a += lane % 16 * kPitch<kLength> + lane / 16 * 8;
  b += lane % 8 * kPitch<kLength> + lane / 8 * 8;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[m][n][e] = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k + 32 <= kLength; k += 32) {
    unsigned x[2][2][4], y[kColumns][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      ldmatrix_x4(x[m][0], a + m * 16 * kPitch<kLength> + k);
      ldmatrix_x4(x[m][1], a + m * 16 * kPitch<kLength> + k + 16);
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) ldmatrix_x4(y[n], b + n * 8 * kPitch<kLength> + k);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int m = 0; m < 2; ++m) mma_16816<T>(sums[m][n], x[m][half], y[n][2 * half], y[n][2 * half + 1]);
      }
    }
  }
  if constexpr (kLength % 32 == 16) {  // half as many columns of b as ldmatrix_x4 reads
    constexpr int k = kLength - 16;
    unsigned x[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) ldmatrix_x4(x[m], a + m * 16 * kPitch<kLength> + k);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const unsigned* y = reinterpret_cast<const unsigned*>(pairs + n * 8 * kPitch<kLength> + k);
#pragma unroll
      for (int m = 0; m < 2; ++m) mma_16816<T>(sums[m][n], x[m], y[0], y[4]);
    }
  }
}

// out (32 rows by kColumns x 8 columns) += weights (32 rows of kTile, kPitch<kTile> apart) x (kTile rows). For one times 8
// columns, two of the four matrices that ldmatrix_x4 reads are the others again.
template <int kTile, int kLength, int kColumns, typename T>
__device__ __forceinline__ void add_weighted_rows(const T* weights, const T* x, float (&out)[2][kColumns][4]) {
  const int lane = threadIdx.x % kWarp;
  weights += lane % 16 * kPitch<kTile> + lane / 16 * 8;
  x += lane % 16 * kPitch<kLength> + (kColumns == 1 ? 0 : lane / 16 * 8);
#pragma unroll 1  // 36 mma at kLength = 288; more would cost registers
  for (int k = 0; k < kTile; k += 16) {
    unsigned w[2][4];
    ldmatrix_x4(w[0], weights + k);
    ldmatrix_x4(w[1], weights + 16 * kPitch<kTile> + k);
#pragma unroll
    for (int n = 0; n < kColumns; n += 2) {
      unsigned y[4];
      ldmatrix_x4_trans(y, x + k * kPitch<kLength> + n * 8);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        mma_16816<T>(out[m][n], w[m], y[0], y[1]);
        if constexpr (kColumns > 1) mma_16816<T>(out[m][n + 1], w[m], y[2], y[3]);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------- rows of 32-row fragments

// Where a lane's values stand in fragments of 32 rows by n x 8 columns, as multiply_rows and add_weighted_rows have
// them: [m][n][2 h + e] is row m 16 + h 8 + g, column n 8 + 2 q + e.
struct Place {
  int g = threadIdx.x % kWarp / 4, q = threadIdx.x % 4;
  __device__ __forceinline__ int row(int m, int h) const { return m * 16 + h * 8 + g; }
  __device__ __forceinline__ int column(int n) const { return n * 8 + 2 * q; }
};

// body(m, h) of a lane's four rows.
template <typename Body>
__device__ __forceinline__ void for_each_row(Body body) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) body(m, h);
  }
}

// Combines the values of the four lanes that share a row.
template <typename Combine>
__device__ __forceinline__ float combine_in_row(float value, Combine combine) {
  value = combine(value, __shfl_xor_sync(kAllLanes, value, 1));
  return combine(value, __shfl_xor_sync(kAllLanes, value, 2));
}

}  // namespace reidops
