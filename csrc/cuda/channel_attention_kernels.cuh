// What channel_attention does to its scores between the matrix products, and what it leaves to backward.
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

// A number of the output, and the rest that rounding took from it; zeros where the rest is filled up.
template <typename T, typename A>
__device__ __forceinline__ void store_attended(A exact, int64_t image, int query, int v, int channels,
                                               const Statistics<T, A>& statistics, T* out) {
  const T rounded = static_cast<T>(exact);
  if (v < statistics.width) out[(image * channels + query) * statistics.width + v] = rounded;
  if constexpr (Statistics<T, A>::kHasRest) {
    T* const rest = statistics.rest(image, query);
    if (v < statistics.width) rest[v] = static_cast<T>(exact - static_cast<A>(rounded));
    if (v == statistics.width - 1 && v % 2 == 0) rest[v + 1] = T(0.0f);
  }
}

// A power of two that keeps share (grad . value - delta) within float16: 2 largest[0] largest[1] is a bound of it, and
// becomes 2^15 at most. Gradients of a loss are often below what float16 can hold, and scaled ones above.
__device__ __forceinline__ float slope_scale(const unsigned* largest, int64_t image) {
  if (largest == nullptr) return 1.0f;
  const float bound = __uint_as_float(largest[2 * image]) * __uint_as_float(largest[2 * image + 1]);
  const int exponent = static_cast<int>(__float_as_uint(bound) >> 23) - 126;  // bound < 2^exponent
  const int power = 14 - exponent < 100 ? 14 - exponent : 100;
  return __uint_as_float(static_cast<unsigned>(power + 127) << 23);
}

// ------------------------------------------------------------------------------------------------- forward, few values

constexpr int kFewValues = 16;  // numbers of a value that need no matrix product
constexpr int kSomeValues = 4;  // the same, in fewer registers: MuDeep_v2's averages
constexpr int kTurnThreads = 256;

// values: (batch, channels, width) -> turned: (batch, padded_width, pitch), zeros in what is added.
template <typename T, typename A>
__global__ void __launch_bounds__(kTurnThreads)
    turn_values_kernel(const T* __restrict__ values, int64_t batch, int channels, int width, int padded_width,
                       int64_t pitch, A* __restrict__ turned) {
  const int64_t count = batch * padded_width * pitch;
  for (int64_t e = blockIdx.x * int64_t(kTurnThreads) + threadIdx.x; e < count;
       e += gridDim.x * int64_t(kTurnThreads)) {
    const int64_t column = e % pitch, image = e / pitch / padded_width;
    const int v = static_cast<int>(e / pitch % padded_width);
    const bool inside = column < channels && v < width;
    turned[e] = inside ? static_cast<A>(values[(image * channels + column) * width + v]) : A(0);
  }
}

constexpr int kAttendThreads = 128;
template <int kFew>
constexpr int kAttendRows = kFew > kSomeValues ? 2 : 4;  // of a warp, which share what it reads of the values

// The softmax of the scores and the mean of the values by it, in one reading: each lane follows the highest score among
// its own columns, and the warp puts them together. values: turned, (images, kFew, pitch) from the part's first image
// on. out: (batch, channels, width).
//
// 16.8 MB of scores an image of 2,048 channels, 3 to 6 us from the L2 cache; 4 values take some 12 instructions a
// score, 3 us. Memory bounds it.
template <typename T, typename A, int kFew>
__global__ void __launch_bounds__(kAttendThreads, sizeof(A) == 8 ? 2 : 4)
    attend_kernel(const A* __restrict__ scores, Part part, const A* __restrict__ values, Statistics<T, A> statistics,
                  T* __restrict__ out) {
  constexpr int kRows = kAttendRows<kFew>, kWidth = kVector<A>;
  const int lane = threadIdx.x % kWarp;
  const int first = (blockIdx.x * (kAttendThreads / kWarp) + threadIdx.x / kWarp) * kRows;
  if (first >= part.rows) return;
  const A* rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    rows[r] = scores + part.at(blockIdx.y, first + r < part.rows ? first + r : part.rows - 1);
  }
  values += blockIdx.y * kFew * part.pitch;
  A highest[kRows], sum[kRows] = {}, attended[kRows][kFew] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) highest[r] = -std::numeric_limits<A>::infinity();
#pragma unroll 1  // four lines on their way are enough, and two rounds spill on sm_80
  for (int column = lane * kWidth; column < part.channels; column += kWarp * kWidth) {
    Vector<A, kWidth> line[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) line[r] = *reinterpret_cast<const Vector<A, kWidth>*>(rows[r] + column);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      A peak = highest[r];
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        if (column + e >= part.channels) line[r].values[e] = -std::numeric_limits<A>::infinity();
        peak = line[r].values[e] > peak ? line[r].values[e] : peak;
      }
      if (peak > highest[r]) {
        const A factor = exponential<T>(highest[r] - peak);
        highest[r] = peak;
        sum[r] *= factor;
#pragma unroll
        for (int v = 0; v < kFew; ++v) attended[r][v] *= factor;
      }
      const A base = highest[r] == -std::numeric_limits<A>::infinity() ? A(0) : highest[r];
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        line[r].values[e] = exponential<T>(line[r].values[e] - base);
        sum[r] += line[r].values[e];
      }
    }
#pragma unroll
    for (int v = 0; v < kFew; ++v) {
      const auto value = *reinterpret_cast<const Vector<A, kWidth>*>(values + v * part.pitch + column);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) attended[r][v] += line[r].values[e] * value.values[e];
      }
    }
  }
  const int64_t image = part.image + blockIdx.y;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    A top = highest[r];
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const A other = __shfl_xor_sync(kAllLanes, top, step);
      top = other > top ? other : top;
    }
    // Of a lane without columns, or with none above minus infinity, nothing counts.
    const A factor = highest[r] == -std::numeric_limits<A>::infinity() ? A(0) : exponential<T>(highest[r] - top);
    const A share = A(1) / warp_sum(sum[r] * factor);
    const int query = part.row + first + r;
    const bool inside = first + r < part.rows;
    if (lane == 0 && inside) {
      statistics.maximum(image)[query] = top;
      statistics.share(image)[query] = share;
    }
#pragma unroll
    for (int v = 0; v < kFew; ++v) {
      const A exact = warp_sum(attended[r][v] * factor) * share;
      if (lane == v && inside) store_attended(exact, image, query, v, part.channels, statistics, out);
    }
  }
}

// ------------------------------------------------------------------------------------------------ forward, many values

constexpr int kWeighThreads = 256;

// The exponentials of the scores, times kWeightScale, which the product with the values takes; their maximum and share.
// Where T is A, weights may be the scores themselves. A warp a row, read twice, the second time from the L1 cache.
template <typename T, typename A>
__global__ void __launch_bounds__(kWeighThreads)
    weigh_kernel(const A* scores, Part part, Statistics<T, A> statistics, T* weights) {
  constexpr int kWidth = kVector<A>;
  const int lane = threadIdx.x % kWarp, row = blockIdx.x * (kWeighThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= part.rows) return;
  const int64_t at = part.at(blockIdx.y, row);
  const auto line_at = [&](int column) {
    auto line = *reinterpret_cast<const Vector<A, kWidth>*>(scores + at + column);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      if (column + e >= part.channels) line.values[e] = -std::numeric_limits<A>::infinity();
    }
    return line;
  };
  A top = -std::numeric_limits<A>::infinity();
#pragma unroll 4
  for (int column = lane * kWidth; column < part.channels; column += kWarp * kWidth) {
    const auto line = line_at(column);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) top = line.values[e] > top ? line.values[e] : top;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, top, step);
    top = other > top ? other : top;
  }
  A sum = A(0);
  for (int column = lane * kWidth; column < part.channels; column += kWarp * kWidth) {
    const auto line = line_at(column);
    Vector<T, kWidth> weight;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      weight.values[e] = static_cast<T>(exponential<T>(line.values[e] - top) * A(kWeightScale<T>));
      sum += static_cast<A>(weight.values[e]);
    }
    *reinterpret_cast<Vector<T, kWidth>*>(weights + at + column) = weight;
  }
  sum = warp_sum(sum);
  if (lane == 0) {
    const int64_t image = part.image + blockIdx.y;
    statistics.maximum(image)[part.row + row] = top;
    statistics.share(image)[part.row + row] = A(kWeightScale<T>) / sum;
  }
}

constexpr int kFinishThreads = 256;

// sums: (images, rows, width), of exponentials times values, which may be the output itself where T is A and the part
// has all rows; out: (batch, channels, width).
template <typename T, typename A>
__global__ void __launch_bounds__(kFinishThreads)
    attended_kernel(const A* sums, Part part, Statistics<T, A> statistics, T* out) {
  const int width = statistics.width;
  const int64_t count = int64_t(part.images) * part.rows * width;
  for (int64_t e = blockIdx.x * int64_t(kFinishThreads) + threadIdx.x; e < count;
       e += gridDim.x * int64_t(kFinishThreads)) {
    const int v = static_cast<int>(e % width), query = part.row + static_cast<int>(e / width % part.rows);
    const int64_t image = part.image + e / width / part.rows;
    const A exact = sums[e] * statistics.share(image)[query] * A(1.0f / kWeightScale<T>);
    store_attended(exact, image, query, v, part.channels, statistics, out);
  }
}

// ---------------------------------------------------------------------------------------------------------- backward

constexpr int kDeltaThreads = 256;

// delta_i = grad_i . output_i: (batch, channels), from grad, output, value: (batch, channels, width). largest: (batch,
// 2), zero before, or none: the largest share |grad| of a query and |value| of a key, as the bits of a float, which are
// in the order of the numbers. A warp a row, or kSomeValues lanes. Each tensor is read once: 37.7 MB for 32 x 2048 x 288
// in a half type, so 113 to 151 MB with the rest of the output, 38 to 50 us at an H100's 3 TB/s.
template <int kLanes, typename T, typename A>
__global__ void __launch_bounds__(kDeltaThreads)
    channel_attention_delta_kernel(const T* __restrict__ grad, const T* __restrict__ output,
                                   const T* __restrict__ value, Statistics<T, A> statistics, int64_t batch,
                                   A* __restrict__ delta, unsigned* largest) {
  constexpr int kRows = kDeltaThreads / kLanes;
  const int lane = threadIdx.x % kLanes, channels = statistics.channels, width = statistics.width;
  const int64_t rows = batch * channels;
  const auto sum_lanes = [](A value) {
    for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
  };
  for (int64_t block_row = blockIdx.x * int64_t(kRows); block_row < rows; block_row += gridDim.x * int64_t(kRows)) {
    const int64_t own_row = block_row + threadIdx.x / kLanes, row = own_row < rows ? own_row : rows - 1;
    const int64_t first = row * width, image = row / channels;
    const int query = static_cast<int>(row % channels);
    A sum = A(0), grad_squares = A(0), value_squares = A(0);
#pragma unroll 4
    for (int l = lane; l < width; l += kLanes) {
      const A g = static_cast<A>(grad[first + l]);
      A o = static_cast<A>(output[first + l]);
      if constexpr (Statistics<T, A>::kHasRest) o += static_cast<A>(statistics.rest(image, query)[l]);
      sum += g * o;
      if (largest != nullptr) {
        const A v = static_cast<A>(value[first + l]);
        grad_squares += g * g;
        value_squares += v * v;
      }
    }
    sum = sum_lanes(sum);
    if (lane == 0 && own_row < rows) delta[row] = sum;
    if (largest != nullptr) {
      const A norm = sqrt(sum_lanes(grad_squares)), value_norm = sqrt(sum_lanes(value_squares));
      if (lane == 0 && own_row < rows) {
        const A share = statistics.share(image)[query];
        atomicMax(largest + image * 2, __float_as_uint(static_cast<float>(share * norm)));
        atomicMax(largest + image * 2 + 1, __float_as_uint(static_cast<float>(value_norm)));
      }
    }
  }
}

constexpr int kSlopeThreads = 128;
constexpr int kSlopeRows = 32;  // of a block
constexpr int kSlopeLines = 4;  // read before they are worked on

// Of every score its slope, P (grad . value - delta) times slope_scale, which the products with key and query take.
// With few values grad . value is made here, and `parts` get the sums P grad of the block's rows, (images, ceil(rows /
// kSlopeRows), kFew, pitch). With kFew = 0 grad . value is given, (images, rows, pitch), and `weights` get P times
// kWeightScale for the product with grad. Where T is A, slopes may be the scores themselves, and weights what is given.
//
// A thread has kVector columns and their values, and goes down the rows. 16.8 MB in and 8.4 or 16.8 out an image of
// 2,048 channels: 5 to 10 us; 4 values take some 20 instructions a score, 5 us.
template <typename T, typename A, int kFew>
__global__ void __launch_bounds__(kSlopeThreads)
    slope_kernel(const A* scores, const A* given, Part part, const T* __restrict__ grad, const T* __restrict__ value,
                 Statistics<T, A> statistics, const A* __restrict__ delta, const unsigned* __restrict__ largest,
                 T* slopes, T* weights, A* __restrict__ parts) {
  constexpr int kNumbers = 3, kWidth = kVector<A>, kValues = kFew > 0 ? kFew : 1;
  __shared__ A numbers[kSlopeRows][kNumbers], grads[kSlopeRows][kValues];
  const int first = blockIdx.x * kSlopeRows, width = statistics.width;
  const int rows = part.rows - first < kSlopeRows ? part.rows - first : kSlopeRows;
  const int64_t image = part.image + blockIdx.z;
  for (int e = threadIdx.x; e < rows; e += kSlopeThreads) {
    const int query = part.row + first + e;
    numbers[e][0] = statistics.maximum(image)[query];
    numbers[e][1] = statistics.share(image)[query];
    numbers[e][2] = delta[image * part.channels + query];
  }
  for (int e = threadIdx.x; kFew > 0 && e < rows * kFew; e += kSlopeThreads) {
    const int64_t query = part.row + first + e / kValues;
    const int v = e % kValues;
    grads[e / kValues][v] = v < width ? static_cast<A>(grad[(image * part.channels + query) * width + v]) : A(0);
  }
  __syncthreads();
  const int column = (blockIdx.y * kSlopeThreads + threadIdx.x) * kWidth;
  if (column >= part.channels) return;
  A own[kWidth][kValues] = {}, sums[kWidth][kValues] = {};
  if constexpr (kFew > 0) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
#pragma unroll
      for (int v = 0; v < kFew; ++v) {
        if (column + e < part.channels && v < width) {
          own[e][v] = static_cast<A>(value[(image * part.channels + column + e) * width + v]);
        }
      }
    }
  }
  const A scale = static_cast<A>(slope_scale(largest, image));
  for (int row = 0; row < rows; row += kSlopeLines) {
    Vector<A, kWidth> line[kSlopeLines], products[kSlopeLines];
#pragma unroll
    for (int r = 0; r < kSlopeLines; ++r) {
      const int64_t at = part.at(blockIdx.z, first + (row + r < rows ? row + r : rows - 1)) + column;
      line[r] = *reinterpret_cast<const Vector<A, kWidth>*>(scores + at);
      if constexpr (kFew == 0) products[r] = *reinterpret_cast<const Vector<A, kWidth>*>(given + at);
    }
#pragma unroll
    for (int r = 0; r < kSlopeLines; ++r) {
      if (row + r >= rows) continue;
      const A maximum = numbers[row + r][0], share = numbers[row + r][1], own_delta = numbers[row + r][2];
      Vector<T, kWidth> slope, weight;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const A p = exponential<T>(line[r].values[e] - maximum) * share;
        A product = A(0);
        if constexpr (kFew > 0) {
#pragma unroll
          for (int v = 0; v < kFew; ++v) {
            product += grads[row + r][v] * own[e][v];
            sums[e][v] += p * grads[row + r][v];
          }
        } else {
          product = products[r].values[e];
          weight.values[e] = static_cast<T>(p * A(kWeightScale<T>));
        }
        slope.values[e] = static_cast<T>(p * scale * (product - own_delta));
      }
      const int64_t at = part.at(blockIdx.z, first + row + r) + column;
      *reinterpret_cast<Vector<T, kWidth>*>(slopes + at) = slope;
      if constexpr (kFew == 0) *reinterpret_cast<Vector<T, kWidth>*>(weights + at) = weight;
    }
  }
  if constexpr (kFew > 0) {
    A* to = parts + (blockIdx.z * int64_t(gridDim.x) + blockIdx.x) * kFew * part.pitch + column;
#pragma unroll
    for (int v = 0; v < kFew; ++v) {
      Vector<A, kWidth> line;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) line.values[e] = sums[e][v];
      *reinterpret_cast<Vector<A, kWidth>*>(to + v * part.pitch) = line;
    }
  }
}

// Adds up parts: (images, groups, few, pitch), and, of a part of the rows that is not the first, what `sums` holds,
// (images, few, pitch). With all rows seen into grad_value: (batch, channels, width), else into sums.
template <typename T, typename A>
__global__ void __launch_bounds__(kFinishThreads)
    value_gradient_kernel(const A* __restrict__ parts, int groups, int few, Part part, int width, A* sums,
                          T* __restrict__ grad_value) {
  const int column = blockIdx.x * kFinishThreads + threadIdx.x, v = blockIdx.y;
  if (column >= part.channels) return;
  A* const so_far = sums == nullptr ? nullptr : sums + (blockIdx.z * int64_t(few) + v) * part.pitch + column;
  A sum = part.row > 0 ? *so_far : A(0);
#pragma unroll 8
  for (int group = 0; group < groups; ++group) {
    sum += parts[((blockIdx.z * int64_t(groups) + group) * few + v) * part.pitch + column];
  }
  if (part.row + part.rows < part.channels) {
    *so_far = sum;
  } else {
    grad_value[((part.image + blockIdx.z) * part.channels + column) * width + v] = static_cast<T>(sum);
  }
}

// sums / divisor, and of slopes / slope_scale, in a half type: (images, rows, columns), from image `first` on.
template <typename T, typename A>
__global__ void __launch_bounds__(kFinishThreads)
    gradient_kernel(const A* __restrict__ sums, int64_t first, int64_t images, int64_t image_size, A divisor,
                    const unsigned* __restrict__ largest, T* __restrict__ out) {
  const int64_t count = images * image_size;
  for (int64_t e = blockIdx.x * int64_t(kFinishThreads) + threadIdx.x; e < count;
       e += gridDim.x * int64_t(kFinishThreads)) {
    const A scale = static_cast<A>(slope_scale(largest, first + e / image_size));
    out[e] = static_cast<T>(sums[e] * (A(1) / (divisor * scale)));  // powers of two
  }
}

}  // namespace reidops
