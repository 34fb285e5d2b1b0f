// What is done to a tile of matrix products to make distances of it. All of these read the tile from the L2 cache.
#pragma once

#include <limits>

#include "../core/cancellation.h"
#include "batch.cuh"
#include "pairs.cuh"

namespace reidops {

// A tile of distances, on the device. values: (rows, columns), rows `stride` apart. With norms they are products
// x . y, and the distance is |x|^2 + |y|^2 - 2 x . y.
template <typename T>
struct Tile {
  const T* values;
  int64_t stride;
  const T *row_norms, *column_norms;  // |x|^2 of every row_step-th row, |y|^2 of every column_step-th column, or null
  int64_t row_step, column_step;

  // The columns from `column` on.
  Tile from_column(int64_t column) const {
    return {values + column, stride,
            row_norms,       column_norms == nullptr ? nullptr : column_norms + column * column_step,
            row_step,        column_step};
  }
  // Whether load_batch can read rows and column norms 16 bytes at once.
  __device__ __forceinline__ bool wide() const {
    return at_16_bytes(values) && stride % kGroup<T> == 0 &&
           (column_norms == nullptr || (at_16_bytes(column_norms) && column_step == 1));
  }
  __device__ __forceinline__ T distance(T product, T norms) const {
    const T d = norms - T(2) * product;
    if (norms == std::numeric_limits<T>::infinity()) return norms;  // beyond the largest number, whatever the product
    return d < T(0) ? T(0) : d;                                     // a NaN stays one
  }
  __device__ __forceinline__ T at(int64_t row, int64_t column) const {
    const T value = values[row * stride + column];
    if (row_norms == nullptr) return value;
    return distance(value, row_norms[row * row_step] + column_norms[column * column_step]);
  }
};

// look(start, distances) for the `columns` distances of a row, a batch (batch.cuh) from column `start` on at a time, NaN
// beyond the last one. A warp a row; while it looks at a batch, the next one is on its way: 32 bytes a lane.
template <typename T, typename Look>
__device__ __forceinline__ void for_each_batch(const Tile<T>& tile, int64_t row, int64_t columns, const Look& look) {
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  const bool wide = tile.wide(), products = tile.row_norms != nullptr;
  const T* values = tile.values + row * tile.stride;
  const T row_norm = products ? tile.row_norms[row * tile.row_step] : T(0);
  T next[kBatch];
  load_batch<kGroup<T>>(values, 1, wide, 0, columns, kNan, next);
  for (int64_t start = 0; start < columns; start += kBatchColumns) {
    T distances[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) distances[u] = next[u];
    load_batch<kGroup<T>>(values, 1, wide, start + kBatchColumns, columns, kNan, next);
    if (products) {
      T norms[kBatch];
      load_batch<kGroup<T>>(tile.column_norms, tile.column_step, wide, start, columns, kNan, norms);
#pragma unroll
      for (int u = 0; u < kBatch; ++u) distances[u] = tile.distance(distances[u], row_norm + norms[u]);
    }
    look(start, distances);
  }
}

// ----------------------------------------------------------------------------------------------------- by the element

constexpr int kElementThreads = 256;

// Calls run(row, column) for every element, neighbouring threads in one row.
template <typename Run>
__global__ void __launch_bounds__(kElementThreads) elements_kernel(int64_t rows, int64_t columns, Run run) {
  const int64_t across = (columns + kElementThreads - 1) / kElementThreads;
  for (int64_t block = blockIdx.x; block < rows * across; block += gridDim.x) {
    const int64_t column = block % across * kElementThreads + threadIdx.x;
    if (column < columns) run(block / across, column);
  }
}

template <typename Run>
void launch_elements(const char* name, const Tensor& like, int64_t rows, int64_t columns, const Run& run) {
  if (rows == 0 || columns == 0) return;
  launch(name, elements_kernel<Run>, dim3(std::min(rows * ceil_div(columns, kElementThreads), kMaxBlocks)),
         kElementThreads, 0, 0, current_stream(like), rows, columns, run);
}

// out = distance of the tile
template <typename T>
struct CopyTile {
  Tile<T> tile;
  T* out;  // (rows, columns), rows `stride` apart
  int64_t stride;
  __device__ void operator()(int64_t r, int64_t c) const { out[r * stride + c] = tile.at(r, c); }
};

// out += distance of the tile
template <typename T>
struct AddTile {
  Tile<T> tile;
  T* out;  // as above
  int64_t stride;
  __device__ void operator()(int64_t r, int64_t c) const { out[r * stride + c] += tile.at(r, c); }
};

// out += (or =) stripe distance of the tile's squared Euclidean distance
template <typename T>
struct AddStripe {
  Tile<T> tile;
  bool add;
  T* out;  // as above
  int64_t stride;
  __device__ void operator()(int64_t r, int64_t c) const {
    const T cost = tanh_half(sqrt(tile.at(r, c)));
    out[r * stride + c] = add ? out[r * stride + c] + cost : cost;
  }
};

// out = given distances of points i0 + r and j0 + c
template <typename T>
struct CopyGiven {
  Pairs<T> pairs;
  int64_t i0, j0;
  T* out;  // as above
  int64_t stride;
  __device__ void operator()(int64_t r, int64_t c) const { out[r * stride + c] = pairs.given(i0 + r, j0 + c); }
};

// ------------------------------------------------------------------------------------- right where distances are small

constexpr int kFinishThreads = 256;
constexpr int64_t kFinishColumns = 512;  // of a warp

// out: (rows, columns), rows `stride` apart, may be the tile's own values: the squared distance, or its root. x: the
// rows' features, x_step apart, y: the columns'. With `repair`, a squared distance below kTensorCancellation of the norms
// is computed again from the differences (and so is one whose norms are beyond the largest number), by the whole warp:
// 8 d bytes from the L2 cache, for the few pairs of a row that are near each other.
//
// 2,816 x 3,072: 35 MB in, from the L2 cache, and 35 MB out, to memory in the end: 12 us at 3 TB/s, and the same for what
// the cache has written back of the product meanwhile. Some 15 instructions a distance, 5 us. Memory bounds it.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads, sizeof(T) == 4 ? 5 : 3)
    finish_kernel(Tile<T> tile, int64_t rows, int64_t columns, const T* __restrict__ x, int64_t x_step,
                  const T* __restrict__ y, int64_t y_step, int64_t depth, bool repair, bool root, T* out,
                  int64_t stride) {
  constexpr int kWarps = kFinishThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  const bool wide = tile.wide(), wide_out = at_16_bytes(out) && stride % kGroup<T> == 0;
  const int64_t across = (columns + kFinishColumns - 1) / kFinishColumns;
  for (int64_t part = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; part < rows * across;
       part += gridDim.x * int64_t(kWarps)) {
    const int64_t row = part / across, first = part % across * kFinishColumns;
    const int64_t last = first + kFinishColumns < columns ? first + kFinishColumns : columns;
    const T row_norm = tile.row_norms[row * tile.row_step];
    for (int64_t start = first; start < last; start += kBatchColumns) {
      T distances[kBatch], norms[kBatch];
      load_batch<kGroup<T>>(tile.values + row * tile.stride, 1, wide, start, last, T(0), distances);
      load_batch<kGroup<T>>(tile.column_norms, tile.column_step, wide, start, last, T(1), norms);
      unsigned near = 0;  // this lane's elements
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const T both = row_norm + norms[u];
        distances[u] = tile.distance(distances[u], both);
        const bool right =  // or beyond help
            (distances[u] >= kTensorCancellation<T> * both && both < std::numeric_limits<T>::infinity()) ||
            both != both;
        if (repair && !right && start + batch_column<kGroup<T>>(u) < last) near |= 1u << u;
      }
      for (unsigned lanes = __ballot_sync(kAllLanes, near != 0); lanes != 0; lanes &= lanes - 1) {
        const int owner = __ffs(lanes) - 1;
        for (unsigned elements = __shfl_sync(kAllLanes, near, owner); elements != 0; elements &= elements - 1) {
          const int element = __ffs(elements) - 1;
          const int64_t column = start + batch_column<kGroup<T>>(owner, element);
          const T exact = squared_distance_in_warp(x + row * x_step, y + column * y_step, depth);
#pragma unroll
          for (int u = 0; u < kBatch; ++u) {
            if (lane == owner && u == element) distances[u] = exact;
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) distances[u] = root ? sqrt(distances[u]) : distances[u];
      store_batch<kGroup<T>>(out + row * stride, wide_out, start, last, distances);
    }
  }
}

// --------------------------------------------------------------------------------------------------- the path of a pair

constexpr int kPathThreads = 128;

template <typename T>
__device__ __forceinline__ T stripe_cost(T squared) {
  return tanh_half(sqrt(squared));
}
// Approximate root, two units in the last place; an IEEE one costs as much as the rest of a cell.
template <>
__device__ __forceinline__ float stripe_cost<float>(float squared) {
  const bool plain = squared > 0.0f && squared < std::numeric_limits<float>::infinity();
  return tanh_half(plain ? squared * rsqrtf(squared) : squared);
}

// One step of core/path.h's recurrence.
template <typename T>
__device__ __forceinline__ T path_step(T cost, T up, T left, bool has_up, bool has_left) {
  return cost + (has_up && has_left ? (up < left ? up : left) : has_up ? up : has_left ? left : T(0));
}

// tile: (images_x m, images_y n) squared distances of stripes, out: (images_x, images_y), rows `out_stride` apart.
// A thread a pair, neighbouring threads neighbouring images of y, so that a warp reads each of the m rows in one piece,
// 4 n bytes a thread. kN: n, when the totals of a row of the path fit in registers; else 0, and they lie in shared
// memory or in scratch: (gridDim, n, kPathThreads).
//
// 8 x 8 float32: 256 bytes a pair from the L2 cache, and about 26 instructions a cell, two of them on the
// special-function unit: 64 x 26 / 128 lanes = 13 cycles a pair and multiprocessor, against 256 bytes / 40 bytes a cycle
// = 6.4. The arithmetic bounds it: 53.6 million pairs take 3 ms on 132 multiprocessors at 1.75 GHz.
template <typename T, int kN>
__global__ void __launch_bounds__(kPathThreads)
    stripe_path_kernel(Tile<T> tile, int64_t images_x, int m, int64_t images_y, int n_any, T* scratch,
                       T* __restrict__ out, int64_t out_stride) {
  const int n = kN > 0 ? kN : n_any;
  const int64_t across = (images_y + kPathThreads - 1) / kPathThreads;
  T* stored = nullptr;
  if constexpr (kN == 0) {
    stored = (scratch == nullptr ? shared_memory<T>() : scratch + blockIdx.x * int64_t(n) * kPathThreads) + threadIdx.x;
  }
  for (int64_t block = blockIdx.x; block < images_x * across; block += gridDim.x) {
    const int64_t i = block / across, j = block % across * kPathThreads + threadIdx.x;
    if (j >= images_y) continue;  // there is no barrier in this loop
    const T* values = tile.values + i * m * tile.stride + j * n;
    if constexpr (kN > 0) {
      T totals[kN], norms[kN];
#pragma unroll
      for (int b = 0; b < kN; ++b) norms[b] = tile.row_norms == nullptr ? T(0) : tile.column_norms[j * n + b];
#pragma unroll 2
      for (int a = 0; a < m; ++a) {
        struct alignas(kN * sizeof(T) % 16 == 0 ? 16 : alignof(T)) Line {
          T cells[kN];
        };
        const Line line = *reinterpret_cast<const Line*>(values + a * tile.stride);
        const T row_norm = tile.row_norms == nullptr ? T(0) : tile.row_norms[i * m + a];
#pragma unroll
        for (int b = 0; b < kN; ++b) {
          const T squared =
              tile.row_norms == nullptr ? line.cells[b] : tile.distance(line.cells[b], row_norm + norms[b]);
          totals[b] =
              path_step(stripe_cost(squared), totals[b], b > 0 ? totals[b > 0 ? b - 1 : 0] : T(0), a > 0, b > 0);
        }
      }
      out[i * out_stride + j] = totals[kN - 1];
    } else {
      T left = T(0);
      for (int a = 0; a < m; ++a) {
        for (int b = 0; b < n; ++b) {
          T* total = stored + int64_t(b) * kPathThreads;
          const T cost = stripe_cost(tile.at(i * m + a, j * n + b));
          *total = left = path_step(cost, a > 0 ? *total : T(0), left, a > 0, b > 0);
        }
      }
      out[i * out_stride + j] = left;
    }
  }
}

// Where stripe_path_kernel keeps a row of totals: registers for 8 stripes, else shared memory, else this.
class PathScratch {
 public:
  PathScratch(int64_t n, int64_t element_bytes, const Tensor& like)
      : bytes_(n == 8 ? 0 : n * kPathThreads * element_bytes),
        most_blocks_(bytes_ > kPlainSharedBytes ? scratch_blocks(kMaxBlocks, bytes_) : kMaxBlocks),
        memory_(bytes_ > kPlainSharedBytes ? most_blocks_ * bytes_ / element_bytes : 0, like) {}
  int64_t shared_bytes() const { return bytes_ > kPlainSharedBytes ? 0 : bytes_; }
  int64_t most_blocks() const { return most_blocks_; }
  template <typename T>
  T* get() const {
    return memory_.get<T>();
  }

 private:
  int64_t bytes_, most_blocks_;
  Scratch memory_;
};

template <typename T>
void launch_stripe_path(const Tile<T>& tile, int64_t images_x, int m, int64_t images_y, int n,
                        const PathScratch& scratch, T* out, int64_t out_stride, const Tensor& like) {
  const int64_t blocks = std::min(images_x * ceil_div(images_y, kPathThreads), scratch.most_blocks());
  launch("stripe_path", n == 8 ? stripe_path_kernel<T, 8> : stripe_path_kernel<T, 0>, dim3(blocks), kPathThreads,
         scratch.shared_bytes(), kPlainSharedBytes, current_stream(like), tile, images_x, m, images_y, n,
         scratch.get<T>(), out, out_stride);
}

}  // namespace reidops
