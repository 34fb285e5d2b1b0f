// From the nearest neighbours of each point to its encoding V: reciprocal sets, their expansion, weights, and the mean
// over neighbours. What follows is in re_ranking_jaccard.cuh.
//
// A warp a point, everywhere, and every list, set and row sorted: 21 neighbours, 20 members or 25 weights are a lane
// each, and a set is asked for a member by 5 to 7 reads of the L1 cache. What bounds these kernels is the latency of
// such chains of reads, some 2 to 6 microseconds a point; with 40 warps on each of 132 multiprocessors, 19,281 points
// come in four waves. No kernel uses shared memory or has a limit of sizes.
#pragma once

#include "../core/re_ranking.h"
#include "nearest_kernels.cuh"
#include "sorted_row.cuh"

namespace reidops {

constexpr int kPointThreads = 128;
constexpr int kPointWarps = kPointThreads / kWarp;
constexpr int kPointBlocks = 8;  // of a multiprocessor: up to 64 registers a thread

// The warps of the grid take points in turn: first_point(), first_point() + point_step(), ...
__device__ __forceinline__ int64_t first_point() { return blockIdx.x * int64_t(kPointWarps) + threadIdx.x / kWarp; }
__device__ __forceinline__ int64_t point_step() { return gridDim.x * int64_t(kPointWarps); }

// ---------------------------------------------------------------------------------------------------- reciprocal sets

// The lists' indices alone. A distance that was not a number left a gap, and the point itself stands in for it.
template <typename T>
struct TakeIndices {
  const Neighbor<T>* nearest;  // (total, near)
  int64_t near;
  int32_t* indices;  // (total, near)
  __device__ void operator()(int64_t /*row*/, int64_t at) const {
    const int32_t index = nearest[at].index;
    indices[at] = index == nobody<T>().index ? static_cast<int32_t>(at / near) : index;
  }
};

// The first `count` of each list, sorted by index, and where each of them stood. Of equal ones (the point itself, for
// gaps) the one that stood first comes first.
struct SortedLists {
  const int32_t* indices;  // (total, count)
  const int64_t* places;   // (total, count)
  int count;

  // Where `point` stands in the list of i, or -1.
  __device__ __forceinline__ int place(int64_t i, int32_t point) const {
    const int at = find(indices + i * count, count, point);
    return at < 0 ? -1 : static_cast<int>(places[i * count + at]);
  }
};

// The sets R(i, count) of all points, ascending.
struct Sets {
  int32_t* members;  // (total, count)
  int32_t* sizes;    // (total,)
  int count;

  __device__ __forceinline__ int32_t* of(int64_t i) const { return members + i * count; }
};

// j of the first n of i is in R(i, n) when i is among the first n of j. A lane asks j's list, and its answer serves
// both sizes: for 21 neighbours a point reads 21 lists, some 100 bytes each: 2 GB for a million points.
static __global__ void __launch_bounds__(kPointThreads, kPointBlocks)
    reciprocal_sets_kernel(SortedLists lists, int64_t total, Sets whole, Sets half) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = first_point(); i < total; i += point_step()) {
    const int32_t* list = lists.indices + i * lists.count;
    int whole_size = 0, half_size = 0;
    for (int k = lane; k - lane < lists.count; k += kWarp) {
      const int32_t j = k < lists.count ? list[k] : 0;
      const bool once = k < lists.count && (k == 0 || list[k - 1] != j);
      const int theirs = once ? lists.place(j, static_cast<int32_t>(i)) : -1;
      const bool in_whole = theirs >= 0;
      const bool in_half = in_whole && theirs < half.count && lists.places[i * lists.count + k] < half.count;
      const unsigned whole_lanes = __ballot_sync(kAllLanes, in_whole), half_lanes = __ballot_sync(kAllLanes, in_half);
      if (in_whole) whole.of(i)[whole_size + count_below(whole_lanes, lane)] = j;
      if (in_half) half.of(i)[half_size + count_below(half_lanes, lane)] = j;
      whole_size += __popc(whole_lanes);
      half_size += __popc(half_lanes);
    }
    if (lane == 0) {
      whole.sizes[i] = whole_size;
      half.sizes[i] = half_size;
    }
  }
}

// ----------------------------------------------------------------------------------------------------------- encoding

// Rows of weights, V, in the order in which they were finished. Which row lies where is nothing that a result shows.
template <typename T>
struct SparseRows {
  int64_t* first;            // (total,)
  int32_t* sizes;            // (total,)
  int32_t* columns;          // (capacity,): row i in [first[i], first[i] + sizes[i]), ascending
  T* weights;                // as columns; both are null where only the sum of the sizes is wanted
  unsigned long long* used;  // (1,)

  // Gives row i a place, for a whole warp; calls write(where, k) for each k < size, unless rows are only counted.
  template <typename Write>
  __device__ __forceinline__ void store(int64_t i, int size, Write write) const {
    const int lane = threadIdx.x % kWarp;
    unsigned long long place = lane == 0 ? atomicAdd(used, static_cast<unsigned long long>(size)) : 0;
    if (columns == nullptr) return;
    place = __shfl_sync(kAllLanes, place, 0);
    if (lane == 0) {
      first[i] = static_cast<int64_t>(place);
      sizes[i] = size;
    }
    for (int k = lane; k < size; k += kWarp) write(static_cast<int64_t>(place) + k, k);
  }
};

// Where the warps of a launch put a row together.
template <typename T>
struct RowScratch {
  int32_t* columns;  // (warps, capacity)
  T* weights;        // (warps, capacity), or null
  int64_t capacity;

  __device__ __forceinline__ SortedRow<T> row() const {
    const int64_t begin = first_point() * capacity;
    return {columns + begin, weights == nullptr ? nullptr : weights + begin};
  }
};

// The columns of V. Row i has the members of R(i, near_count) and of the half-size sets of those members that have more
// than two thirds of themselves in it: 19 to 23 columns on features that gather as identities do.
template <typename T>
__global__ void __launch_bounds__(kPointThreads, kPointBlocks)
    expand_kernel(Sets whole, Sets half, int64_t total, RowScratch<T> scratch, SparseRows<T> encoding) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = first_point(); i < total; i += point_step()) {
    const int32_t* own = whole.of(i);
    const int own_size = whole.sizes[i];
    SortedRow<T> row = scratch.row();
    row.merge(own, nullptr, own_size);
    for (int begin = 0; begin < own_size; begin += kWarp) {
      const int lanes = own_size - begin < kWarp ? own_size - begin : kWarp;
      const int32_t mine = lane < lanes ? own[begin + lane] : 0;
      const int mine_size = half.sizes[mine];
      for (int l = 0; l < lanes; ++l) {
        const int32_t* other = half.of(__shfl_sync(kAllLanes, mine, l));
        const int size = __shfl_sync(kAllLanes, mine_size, l);
        int shared = 0;
        for (int k = lane; k - lane < size; k += kWarp) {
          shared += __popc(__ballot_sync(kAllLanes, k < size && find(own, own_size, other[k]) >= 0));
        }
        if (shared < size && joins(shared, size)) row.merge(other, nullptr, size);
      }
    }
    encoding.store(i, row.size, [&](int64_t to, int k) { encoding.columns[to] = row.columns[k]; });
  }
}

// The weights of V: e^-d, normalised to 1. nearest: (total, near), row_maximum: (total,), not read for "jaccard".
// Distances that the list has are taken from it, infinity for a gap. Those of the others, which came by other points'
// sets, are computed one by one, half a one to four a point: for 2,048 channels in float32 up to 64 KB, half of it the
// point's own row, which stays in the L1 cache. That is 0.6 GB for 19,281 points, and then memory bounds the kernel.
template <typename T, typename Pair>
__global__ void __launch_bounds__(kPointThreads, 32 / sizeof(T))
    weigh_kernel(const Neighbor<T>* __restrict__ nearest, int64_t near, const T* __restrict__ row_maximum,
                 SortedLists lists, int64_t total, Parameters p, Pair pair, SparseRows<T> encoding) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = first_point(); i < total; i += point_step()) {
    const int32_t* columns = encoding.columns + encoding.first[i];
    T* weights = encoding.weights + encoding.first[i];
    const int size = encoding.sizes[i];
    const T maximum = p.jaccard ? T(0) : row_maximum[i];
    T smallest = std::numeric_limits<T>::infinity();
    for (int k = lane; k - lane < size; k += kWarp) {
      const int32_t column = k < size ? columns[k] : 0;
      const int place = k < size ? lists.place(i, column) : -1;
      T d = place < 0 ? T(0) : nearest[i * near + place].distance;
      for (unsigned rest = __ballot_sync(kAllLanes, k < size && place < 0); rest != 0; rest &= rest - 1) {
        const int l = __ffs(rest) - 1;
        const T computed = pair.in_warp(i, __shfl_sync(kAllLanes, column, l));
        if (l == lane) d = computed;
      }
      if (k < size) {
        d = p.scaled(d, maximum);
        weights[k] = d;
        smallest = d < smallest ? d : smallest;
      }
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(kAllLanes, smallest, step);
      smallest = other < smallest ? other : smallest;
    }
    // Shifted by the smallest, so that far points do not vanish together.
    T sum = T(0);
    for (int k = lane; k < size; k += kWarp) {
      weights[k] = exp(smallest - weights[k]);
      sum += weights[k];
    }
    sum = warp_sum(sum);
    for (int k = lane; k < size; k += kWarp) weights[k] /= sum;
  }
}

// Query expansion: row i of `mean` is the mean of V over the k2 nearest of i, each column summed in their order.
// indices: (total, near). Rows of 19 to 23 weights become rows of 25 to 43, 0.2 to 0.4 KB each.
template <typename T>
__global__ void __launch_bounds__(kPointThreads, kPointBlocks)
    mean_kernel(const int32_t* __restrict__ indices, int64_t total, int64_t near, int64_t k2, SparseRows<T> encoding,
                RowScratch<T> scratch, SparseRows<T> mean) {
  const int lane = threadIdx.x % kWarp;
  const T share = T(1) / static_cast<T>(k2);
  for (int64_t i = first_point(); i < total; i += point_step()) {
    SortedRow<T> row = scratch.row();
    for (int64_t begin = 0; begin < k2; begin += kWarp) {
      const int lanes = k2 - begin < kWarp ? static_cast<int>(k2 - begin) : kWarp;
      const int32_t mine = lane < lanes ? indices[i * near + begin + lane] : 0;
      const int64_t mine_first = encoding.first[mine];
      const int mine_size = encoding.sizes[mine];
      for (int l = 0; l < lanes; ++l) {
        const int64_t first = __shfl_sync(kAllLanes, mine_first, l);
        row.merge(encoding.columns + first, encoding.weights + first, __shfl_sync(kAllLanes, mine_size, l));
      }
    }
    mean.store(i, row.size, [&](int64_t to, int k) {
      mean.columns[to] = row.columns[k];
      mean.weights[to] = row.weights[k] * share;
    });
  }
}

}  // namespace reidops
