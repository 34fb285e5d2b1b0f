// The k nearest of a stream of distances, tile by tile. Each point has a list in memory, sorted by core/order.h; a tile's
// distances that come before its last entry are collected behind the list in shared memory, and sorted into it when
// there is no room for more. What is kept is a set that does not depend on the order of the tiles.
//
// A tile is read once from the L2 cache, 4 bytes and about 8 instructions a distance; of N distances, k ln(N / k) enter
// a list (140 for 21 of 19,281), and are sorted in some ten rounds of 28 steps.
#pragma once

#include <limits>

#include "../core/order.h"
#include "tile_kernels.cuh"

namespace reidops {

constexpr int kMostNearest = 1024;  // of a list; a longer one is made by sorting whole rows
constexpr int kNearestThreads = 256;
constexpr int kUnroll = 4;  // loads of a lane in flight, by rows; 8 by columns

// What fills a list up: after every neighbour.
template <typename T>
REIDOPS_HD constexpr Neighbor<T> nobody() {
  return {std::numeric_limits<T>::infinity(), std::numeric_limits<int32_t>::max()};
}

// A list and the candidates behind it, in shared memory; worked on by one warp.
template <typename T>
class List {
 public:
  // memory: (capacity,), a power of two of at least k + 64. stored: (k,), the sorted list so far.
  __device__ __forceinline__ List(Neighbor<T>* memory, int capacity, const Neighbor<T>* stored, int k)
      : entries_(memory), capacity_(capacity), k_(k), count_(k), limit_(stored[k - 1]) {
    for (int r = threadIdx.x % kWarp; r < k; r += kWarp) entries_[r] = stored[r];
  }

  // Each lane offers a neighbour or none. A distance that is not a number is nobody's neighbour.
  __device__ __forceinline__ void offer(bool any, Neighbor<T> neighbor) {
    const bool wanted = any && neighbor.before(limit_);
    const unsigned lanes = __ballot_sync(kAllLanes, wanted);
    if (lanes == 0) return;
    if (wanted) entries_[count_ + count_below(lanes, threadIdx.x % kWarp)] = neighbor;
    count_ += __popc(lanes);
    changed_ = true;
    if (count_ > capacity_ - kWarp) sort();
  }

  __device__ __forceinline__ void store(Neighbor<T>* stored) {
    if (!changed_) return;
    if (count_ > k_) sort();
    for (int r = threadIdx.x % kWarp; r < k_; r += kWarp) stored[r] = entries_[r];
    __syncwarp();
  }

 private:
  __device__ __forceinline__ void sort() {
    const int lane = threadIdx.x % kWarp;
    for (int r = count_ + lane; r < capacity_; r += kWarp) entries_[r] = nobody<T>();
    for (int size = 2; size <= capacity_; size *= 2) {
      for (int step = size / 2; step > 0; step /= 2) {
        __syncwarp();
        for (int pair = lane; pair < capacity_ / 2; pair += kWarp) {
          const int low = pair / step * 2 * step + pair % step, high = low + step;
          const Neighbor<T> a = entries_[low], b = entries_[high];
          if ((low & size) == 0 ? b.before(a) : a.before(b)) {
            entries_[low] = b;
            entries_[high] = a;
          }
        }
      }
    }
    __syncwarp();
    count_ = k_;
    limit_ = entries_[k_ - 1];
  }

  Neighbor<T>* entries_;
  int capacity_, k_, count_;  // count_: entries so far, those of the list included
  Neighbor<T> limit_;
  bool changed_ = false;
};

// One side of a tile: `count` points, whose lists and largest distances these are, and what they are compared with.
template <typename T>
struct NearestSide {
  int64_t first, count;      // rows or columns of the tile, from the first
  int64_t others, first_id;  // how many columns or rows, and the point that the first of them is
  Neighbor<T>* lists;        // (count, k)
  T* maximum;                // (count,) or null
};

// The warp's largest distance to one of the side's points.
template <typename T>
__device__ __forceinline__ void raise_maximum(const NearestSide<T>& side, int64_t point, T largest) {
  if (side.maximum == nullptr) return;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, largest, step);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % kWarp == 0 && largest > side.maximum[point]) side.maximum[point] = largest;
}

// A warp a row. entries: (capacity,) of the warp.
template <typename T>
__device__ __forceinline__ void nearest_of_row(const Tile<T>& tile, const NearestSide<T>& side, int64_t point, int k,
                                               int capacity, Neighbor<T>* entries) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = side.first + point;
  List<T> list(entries, capacity, side.lists + point * k, k);
  T largest = T(0);
  for (int64_t start = 0; start < side.others; start += kUnroll * kWarp) {
    T values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t column = start + u * kWarp + lane;
      values[u] = column < side.others ? tile.at(row, column) : T(0);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t column = start + u * kWarp + lane;
      largest = values[u] > largest ? values[u] : largest;
      list.offer(column < side.others, {values[u], static_cast<int32_t>(side.first_id + column)});
    }
  }
  list.store(side.lists + point * k);
  raise_maximum(side, point, largest);
}

// A block takes as many columns as it has warps, 8, reads 256 rows of them at a time in whole sectors of 32 bytes, and
// turns them over in shared memory, where a warp finds its own. turned: (warps, kTurnedPitch).
constexpr int kTurnedRows = 256;
constexpr int kTurnedPitch = kTurnedRows + 4;  // a warp writes 4 rows of 8 columns: 32 banks

template <typename T>
__device__ __forceinline__ void nearest_of_columns(const Tile<T>& tile, const NearestSide<T>& side, int64_t block,
                                                   int k, int capacity, Neighbor<T>* entries, T* turned) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, width = blockDim.x / kWarp;
  // A warp beyond the last column takes the last one again, and keeps the list to itself.
  const bool mine = block * width + warp < side.count;
  const int64_t point = mine ? block * width + warp : side.count - 1;
  List<T> list(entries, capacity, side.lists + point * k, k);
  T largest = T(0);
  for (int64_t start = 0; start < side.others; start += kTurnedRows) {
#pragma unroll 8
    for (int cell = threadIdx.x; cell < kTurnedRows * width; cell += blockDim.x) {
      const int64_t row = start + cell / width, column = block * width + cell % width;
      turned[cell % width * kTurnedPitch + cell / width] = row < side.others && column < side.count
                                                               ? tile.at(row, side.first + column)
                                                               : std::numeric_limits<T>::quiet_NaN();
    }
    __syncthreads();
#pragma unroll 4
    for (int r = lane; r < kTurnedRows; r += kWarp) {
      const T value = turned[warp * kTurnedPitch + r];
      largest = value > largest ? value : largest;
      list.offer(true, {value, static_cast<int32_t>(side.first_id + start + r)});
    }
    __syncthreads();
  }
  if (mine) {
    list.store(side.lists + point * k);
    raise_maximum(side, point, largest);
  }
}

// The first row_blocks blocks take the rows, a warp a row, the others the columns. Each warp has `capacity` entries of
// shared memory, and the block one T more for every turned element.
template <typename T>
__global__ void __launch_bounds__(kNearestThreads, sizeof(T) == 4 ? 4 : 2)
    nearest_kernel(Tile<T> tile, NearestSide<T> rows, int64_t row_blocks, NearestSide<T> columns, int64_t blocks, int k,
                   int capacity) {
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  Neighbor<T>* const entries = shared_memory<Neighbor<T>>() + warp * capacity;
  T* const turned = reinterpret_cast<T*>(shared_memory<Neighbor<T>>() + warps * capacity);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    if (block < row_blocks) {
      const int64_t point = block * warps + warp;
      if (point < rows.count) nearest_of_row(tile, rows, point, k, capacity, entries);
    } else {
      nearest_of_columns(tile, columns, block - row_blocks, k, capacity, entries, turned);
    }
    __syncthreads();  // before the next lists are loaded over these
  }
}

}  // namespace reidops
