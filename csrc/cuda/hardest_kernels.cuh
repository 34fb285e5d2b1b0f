// Each anchor's hardest positive and negative: from the features themselves, from tiles of distances, from a matrix.
#pragma once

#include <limits>

#include "../core/order.h"
#include "tiles.h"

namespace reidops {

constexpr int kSelectThreads = 128;
constexpr int kMineThreads = 1024;
constexpr int kColumnThreads = 256;  // of a block that takes columns of a tile,
constexpr int kColumns = 8;          // as many of them

// What an operator gives: all (batch,).
template <typename T>
struct Mined {
  T *positive, *negative;
  int64_t *positive_index, *negative_index;
};

// The candidate that comes first by ranks_before. No candidate yet: infinitely far, after every index.
template <typename T>
struct First {
  T key;
  int64_t index;

  static __device__ __forceinline__ First none() {
    return {std::numeric_limits<T>::infinity(), std::numeric_limits<int64_t>::max()};
  }
  __device__ __forceinline__ void offer(T other_key, int64_t other_index) {
    if (ranks_before(other_key, other_index, key, index)) {
      key = other_key;
      index = other_index;
    }
  }
  __device__ __forceinline__ void offer(const First& other) { offer(other.key, other.index); }
  // Whether one of this key may come first, by its index.
  __device__ __forceinline__ bool reached_by(T other_key) const { return other_key <= key; }
  // Among every kStep-th lane.
  template <int kStep = 1>
  __device__ __forceinline__ void reduce_in_warp() {
    for (int step = kWarp / 2; step >= kStep; step /= 2) {
      const T other_key = __shfl_xor_sync(kAllLanes, key, step);
      const int64_t other_index = __shfl_xor_sync(kAllLanes, index, step);
      offer(other_key, other_index);
    }
  }
};

// An anchor's hardest samples so far. Farthest: by the negated distance.
template <typename T>
struct Hardest {
  First<T> farthest, nearest;

  static __device__ __forceinline__ Hardest none() { return {First<T>::none(), First<T>::none()}; }
  __device__ __forceinline__ void offer(bool positive, T distance, int64_t index) {
    if (positive) {
      farthest.offer(-distance, index);
    } else {
      nearest.offer(distance, index);
    }
  }
  __device__ __forceinline__ void offer(const Hardest& other) {
    farthest.offer(other.farthest);
    nearest.offer(other.nearest);
  }
  template <int kStep = 1>
  __device__ __forceinline__ void reduce_in_warp() {
    farthest.template reduce_in_warp<kStep>();
    nearest.template reduce_in_warp<kStep>();
  }
  // A NaN is never chosen. An anchor without a candidate is given itself, at distance NaN.
  __device__ __forceinline__ void write(int64_t anchor, int64_t batch, T positive, T negative,
                                        const Mined<T>& out) const {
    constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
    const bool has_positive = farthest.index < batch, has_negative = nearest.index < batch;
    out.positive[anchor] = has_positive ? positive : kNan;
    out.negative[anchor] = has_negative ? negative : kNan;
    out.positive_index[anchor] = has_positive ? farthest.index : anchor;
    out.negative_index[anchor] = has_negative ? nearest.index : anchor;
  }
};

// ------------------------------------------------------------------------------------------------------ from a matrix

// distance: (batch, batch), labels: (batch,). A warp an anchor. It reads its row once, 4 B bytes in float32, and the
// labels, 8 B bytes, which the L1 cache holds up to some ten thousand: memory bounds it, at 4 B^2 bytes (0.25 MB for 256
// anchors, which is to say that the launch bounds it; 64 MB for 4096).
template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    batch_hard_from_distance_kernel(const T* __restrict__ distance, const int64_t* __restrict__ labels, int64_t batch,
                                    Mined<T> out) {
  constexpr int kWarps = kSelectThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int64_t anchor = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; anchor < batch;
       anchor += gridDim.x * int64_t(kWarps)) {
    const T* row = distance + anchor * batch;
    const int64_t label = labels[anchor];
    auto hardest = Hardest<T>::none();
#pragma unroll 4
    for (int64_t j = lane; j < batch; j += kWarp) hardest.offer(labels[j] == label, row[j], j);
    hardest.reduce_in_warp();
    if (lane == 0) hardest.write(anchor, batch, -hardest.farthest.key, hardest.nearest.key, out);
  }
}

// ------------------------------------------------------------------------------------------------- from a small batch

// features: (batch, d), labels: (batch,). A block an anchor, a warp a distance at a time: its loads, 16 a lane in
// flight, hide the latency of the L2 cache, which bounds the kernel: 4 B^2 d bytes.
template <typename T>
__global__ void __launch_bounds__(kMineThreads)
    mine_kernel(const T* __restrict__ features, const int64_t* __restrict__ labels, int64_t batch, int64_t d,
                Mined<T> out) {
  constexpr int kWarps = kMineThreads / kWarp;
  __shared__ Hardest<T> of_warp[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int64_t anchor = blockIdx.x; anchor < batch; anchor += gridDim.x) {
    auto hardest = Hardest<T>::none();
    for (int64_t j = warp; j < batch; j += warps) {
      T sum = T(0);
#pragma unroll 8
      for (int64_t k = lane; k < d; k += kWarp) {
        const T difference = features[anchor * d + k] - features[j * d + k];
        sum += difference * difference;
      }
      hardest.offer(labels[j] == labels[anchor], warp_sum(sum), j);
    }
    if (lane == 0) of_warp[warp] = hardest;
    __syncthreads();
    if (warp == 0) {
      hardest = lane < warps ? of_warp[lane] : Hardest<T>::none();
      hardest.reduce_in_warp();
      if (lane == 0) hardest.write(anchor, batch, sqrt(-hardest.farthest.key), sqrt(hardest.nearest.key), out);
    }
    __syncthreads();
  }
}

template <typename T>
void mine_directly(const Rows<T>& features, const int64_t* labels, const Mined<T>& out, const Tensor& like) {
  const int threads = static_cast<int>(std::min<int64_t>(kMineThreads, features.count * kWarp));
  launch("batch_hard", mine_kernel<T>, dim3(std::min(features.count, kMaxBlocks)), threads, 0, 0, current_stream(like),
         features.values, labels, features.count, features.depth, out);
}

// --------------------------------------------------------------------------------------------------------- from tiles

template <typename T>
struct ClearHardest {
  Hardest<T>* hardest;  // (batch,)
  __device__ void operator()(int64_t, int64_t anchor) const { hardest[anchor] = Hardest<T>::none(); }
};

// Both kernels read the tile once from the L2 cache: 2,816 x 3,072 are 35 MB, 6.5 us at 5.5 TB/s. An anchor begins with
// its hardest of the tiles before, so that few samples are harder, and those of its label are few. By rows that leaves some
// 25 instructions a distance, by columns 36: 8.7 million x 36 / 32 / 528 schedulers = 18,000 cycles, 10 us. Instructions
// bound both; 21 and 23 warps a multiprocessor, each with 1 KB on its way, keep ahead of them.

// Rows of the tile are anchors first_row, ..., columns are samples first_column, ... labels and hardest: (batch,). A
// warp an anchor.
template <typename T>
__global__ void __launch_bounds__(kSelectThreads, sizeof(T) == 4 ? 6 : 4)
    hardest_of_rows_kernel(Tile<T> tile, int64_t first_row, int64_t rows, int64_t first_column, int64_t columns,
                           const int64_t* __restrict__ labels, Hardest<T>* __restrict__ hardest) {
  constexpr int kWarps = kSelectThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  const bool wide = at_16_bytes(labels + first_column);
  for (int64_t row = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; row < rows;
       row += gridDim.x * int64_t(kWarps)) {
    const int64_t anchor = first_row + row, label = labels[anchor];
    auto own = hardest[anchor];
    for_each_batch(tile, row, columns, [&](int64_t start, const T(&distances)[kBatch]) {
      int64_t others[kBatch];
      load_batch<kGroup<T>>(labels + first_column, 1, wide, start, columns, int64_t(0), others);
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const bool positive = others[u] == label;
        if (!positive && !own.nearest.reached_by(distances[u])) continue;
        const int64_t j = first_column + start + batch_column<kGroup<T>>(u);
        if (j - first_column < columns) own.offer(positive, j == anchor ? T(0) : distances[u], j);
      }
    });
    own.reduce_in_warp();
    __syncwarp();  // all have read it
    if (lane == 0) hardest[anchor] = own;
  }
}

// The same for columns as anchors and rows as samples. A block takes 8 columns, 32 bytes of each row in float32, and each
// of its threads every 32nd row of one; while it looks at 8 of them, the next 8 are on their way.
template <typename T>
__global__ void __launch_bounds__(kColumnThreads, sizeof(T) == 4 ? 3 : 2)
    hardest_of_columns_kernel(Tile<T> tile, int64_t first_row, int64_t rows, int64_t first_column, int64_t columns,
                              const int64_t* __restrict__ labels, Hardest<T>* __restrict__ hardest) {
  constexpr int kRows = kColumnThreads / kColumns, kWarps = kColumnThreads / kWarp;
  __shared__ Hardest<T> found[kWarps][kColumns];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, own_row = threadIdx.x / kColumns;
  const int count = static_cast<int>(rows);
  const bool products = tile.row_norms != nullptr;
  for (int64_t first = blockIdx.x * int64_t(kColumns); first < columns; first += gridDim.x * int64_t(kColumns)) {
    // A thread beyond the last column takes the last one again, and keeps what it finds to itself.
    const bool inside = first + lane % kColumns < columns;
    const int64_t column = inside ? first + lane % kColumns : columns - 1, anchor = first_column + column;
    const int64_t label = labels[anchor];
    const T column_norm = products ? tile.column_norms[column * tile.column_step] : T(0);
    auto own = hardest[anchor];
    const T* from = tile.values + own_row * tile.stride + column;
    T next[kBatch] = {};
    const auto read = [&](int start) {
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (start + u * kRows < count) next[u] = from[u * kRows * tile.stride];
      }
      from += kBatch * kRows * tile.stride;
    };
    read(own_row);
    for (int start = own_row; start < count; start += kBatch * kRows) {
      T distances[kBatch];
      int64_t others[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const int row = start + u * kRows < count ? start + u * kRows : count - 1;
        others[u] = labels[first_row + row];
        distances[u] = products ? tile.distance(next[u], column_norm + tile.row_norms[row * tile.row_step]) : next[u];
      }
      read(start + kBatch * kRows);
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const bool positive = others[u] == label;
        if (!positive && !own.nearest.reached_by(distances[u])) continue;
        if (start + u * kRows < count) own.offer(positive, distances[u], first_row + start + u * kRows);
      }
    }
    own.template reduce_in_warp<kColumns>();
    if (lane < kColumns) found[warp][lane] = own;
    __syncthreads();
    if (threadIdx.x < kColumns && inside) {
      for (int w = 1; w < kWarps; ++w) own.offer(found[w][lane]);
      hardest[anchor] = own;
    }
    __syncthreads();
  }
}

template <typename T>
void add_rows(const Tile<T>& tile, int64_t first_row, int64_t rows, int64_t first_column, int64_t columns,
              const int64_t* labels, Hardest<T>* hardest, const Tensor& like) {
  launch("batch_hard", hardest_of_rows_kernel<T>, dim3(std::min(ceil_div(rows, kSelectThreads / kWarp), kMaxBlocks)),
         kSelectThreads, 0, 0, current_stream(like), tile, first_row, rows, first_column, columns, labels, hardest);
}

template <typename T>
void add_columns(const Tile<T>& tile, int64_t first_row, int64_t rows, int64_t first_column, int64_t columns,
                 const int64_t* labels, Hardest<T>* hardest, const Tensor& like) {
  if (columns <= 0) return;
  launch("batch_hard", hardest_of_columns_kernel<T>, dim3(std::min(ceil_div(columns, kColumns), kMaxBlocks)),
         kColumnThreads, 0, 0, current_stream(like), tile, first_row, rows, first_column, columns, labels, hardest);
}

// features: (batch, d), hardest: (batch,). The two distances again, from the differences: 12 d bytes an anchor.
template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    finish_mining_kernel(const T* __restrict__ features, int64_t batch, int64_t d,
                         const Hardest<T>* __restrict__ hardest, Mined<T> out) {
  constexpr int kWarps = kSelectThreads / kWarp;
  for (int64_t anchor = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; anchor < batch;
       anchor += gridDim.x * int64_t(kWarps)) {
    const Hardest<T> own = hardest[anchor];
    const auto distance = [&](const First<T>& sample) {
      const int64_t j = sample.index < batch ? sample.index : anchor;
      return sqrt(squared_distance_in_warp(features + anchor * d, features + j * d, d));
    };
    const T positive = distance(own.farthest), negative = distance(own.nearest);
    if (threadIdx.x % kWarp == 0) own.write(anchor, batch, positive, negative, out);
  }
}

template <typename T>
void finish_mining(const Rows<T>& features, const Hardest<T>* hardest, const Mined<T>& out, const Tensor& like) {
  launch("batch_hard", finish_mining_kernel<T>,
         dim3(std::min(ceil_div(features.count, kSelectThreads / kWarp), kMaxBlocks)), kSelectThreads, 0, 0,
         current_stream(like), features.values, features.count, features.depth, hardest, out);
}

}  // namespace reidops
