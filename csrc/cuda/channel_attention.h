// What the kernels of channel_attention share: a part of its scores, and what forward leaves to backward.
//
// Scores, query_i . key_j, lie in a part of the rows at a time: 32 MB, of which the L2 cache keeps most until they are
// read. Every sum has a fixed order, without atomics.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>
#include <type_traits>

#include "launch.h"

namespace reidops {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What forward leaves to backward, (batch, rows, channels) of the sums' type A: the maximum of each query's scores and
// its share, 1 / the sum of the exponentials. For tensors of a half type T the image's numbers are followed by the rest
// that rounding took from the output, (channels, rest_length) in T; `width` is a value's. Without it delta would be
// wrong by what a rounding is of the output, and grad_query by that times a mean of keys: far more than a rounding of
// itself where keys and values are large against their differences.
template <typename T, typename A>
struct Statistics {
  static constexpr bool kHasRest = !std::is_same_v<T, A>;
  A* numbers;
  int channels, width;

  __host__ __device__ int rest_length() const { return width + width % 2; }
  __host__ __device__ int rows() const { return 2 + (kHasRest ? rest_length() / 2 : 0); }
  __device__ __forceinline__ A* maximum(int64_t image) const { return numbers + image * rows() * channels; }
  __device__ __forceinline__ A* share(int64_t image) const { return maximum(image) + channels; }
  __device__ __forceinline__ T* rest(int64_t image, int query) const {
    return reinterpret_cast<T*>(share(image) + channels) + int64_t(query) * rest_length();
  }
};

// A part of the work: queries [row, row + rows) of images [image, image + images).
struct Part {
  int64_t image;
  int images, row, rows, channels;
  int64_t pitch;  // of scores and their like, (images, rows, pitch): channels, and more up to a whole vector

  __device__ __forceinline__ int64_t at(int64_t i, int r) const { return (i * rows + r) * pitch; }
};

constexpr int kEachThreads = 256;  // of kernels that take every number by itself
constexpr int kFewValues = 16;     // numbers of a value that need no matrix product
constexpr int kSomeValues = 4;     // the same, in fewer registers: MuDeep_v2's averages

template <typename X, int kCount>
struct alignas(sizeof(X) * kCount) Vector {
  X values[kCount];
};

template <typename A>
constexpr int kVector = 16 / sizeof(A);
constexpr int kPitchColumns = 8;  // a pitch is a multiple of this: whole vectors, and cuBLAS's fast kernels

// Float32 itself to all its digits; sums of half types take the special-function unit's.
template <typename T, typename A>
__device__ __forceinline__ A exponential(A x) {
  if constexpr (std::is_same_v<T, A>) {
    return exp(x);
  } else {
    return __expf(x);
  }
}

// float16 has no small numbers: weights times this stay below 2^8, and have 11 bits down to 2^-21.
template <typename T>
constexpr float kWeightScale = std::is_same_v<T, Half> ? 128.0f : 1.0f;

}  // namespace reidops
