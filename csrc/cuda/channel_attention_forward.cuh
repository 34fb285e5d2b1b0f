// What channel_attention does to its scores between the matrix products: the softmax, and the mean of few values by it.
#pragma once

#include "channel_attention.h"

namespace reidops {

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

// ------------------------------------------------------------------------------------------------- forward, few values

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
    const A top = warp_max(highest[r]);
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
  top = warp_max(top);
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

// sums: (images, rows, width), of exponentials times values; out: (batch, channels, width).
template <typename T, typename A>
__global__ void __launch_bounds__(kEachThreads)
    attended_kernel(const A* sums, Part part, Statistics<T, A> statistics, T* out) {
  const int width = statistics.width;
  const int64_t count = int64_t(part.images) * part.rows * width;
  for (int64_t e = blockIdx.x * int64_t(kEachThreads) + threadIdx.x; e < count;
       e += gridDim.x * int64_t(kEachThreads)) {
    const int v = static_cast<int>(e % width), query = part.row + static_cast<int>(e / width % part.rows);
    const int64_t image = part.image + e / width / part.rows;
    const A exact = sums[e] * statistics.share(image)[query] * A(1.0f / kWeightScale<T>);
    store_attended(exact, image, query, v, part.channels, statistics, out);
  }
}

}  // namespace reidops
