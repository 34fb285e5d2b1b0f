// What the gradient of channel_attention does to its scores between the matrix products.
#pragma once

#include "channel_attention.h"

namespace reidops {

// A power of two that keeps share (grad . value - delta) within float16: 2 largest[0] largest[1] is a bound of it, and
// becomes 2^15 at most. Gradients of a loss are often below what float16 can hold, and scaled ones above.
__device__ __forceinline__ float slope_scale(const unsigned* largest, int64_t image) {
  if (largest == nullptr) return 1.0f;
  const float bound = __uint_as_float(largest[2 * image]) * __uint_as_float(largest[2 * image + 1]);
  const int exponent = static_cast<int>(__float_as_uint(bound) >> 23) - 126;  // bound < 2^exponent
  const int power = 14 - exponent < 100 ? 14 - exponent : 100;
  return __uint_as_float(static_cast<unsigned>(power + 127) << 23);
}

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
__global__ void __launch_bounds__(kEachThreads)
    value_gradient_kernel(const A* __restrict__ parts, int groups, int few, Part part, int width, A* sums,
                          T* __restrict__ grad_value) {
  const int column = blockIdx.x * kEachThreads + threadIdx.x, v = blockIdx.y;
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
__global__ void __launch_bounds__(kEachThreads)
    gradient_kernel(const A* __restrict__ sums, int64_t first, int64_t images, int64_t image_size, A divisor,
                    const unsigned* __restrict__ largest, T* __restrict__ out) {
  const int64_t count = images * image_size;
  for (int64_t e = blockIdx.x * int64_t(kEachThreads) + threadIdx.x; e < count;
       e += gridDim.x * int64_t(kEachThreads)) {
    const A scale = static_cast<A>(slope_scale(largest, first + e / image_size));
    out[e] = static_cast<T>(sums[e] * (A(1) / (divisor * scale)));  // powers of two
  }
}

}  // namespace reidops
