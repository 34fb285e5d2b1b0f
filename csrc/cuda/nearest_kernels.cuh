// The k nearest of a stream of distances, tile by tile. Each point has a list in memory, sorted by core/order.h; a tile's
// distances that come before its last entry are collected behind the list in shared memory, and merged into it 32 at a
// time. What is kept is a set that does not depend on the order of the tiles.
//
// A tile is read once for each side from the L2 cache. 2,816 x 3,072: 2 x 35 MB, 13 us at 5.5 TB/s; some 20 instructions
// a distance, 2 x 8.7 million x 20 / 32 / 528 schedulers = 20,000 cycles, 12 us at 1.75 GHz. Of N distances k ln(N / k)
// enter a list (140 for 21 of 19,281). A list's first tile brings some 180 candidates in six merges of about 400
// instructions, 5,888 x 6 x 400 / 528 = 27,000 cycles more, 15 us; a later one fifteen or fewer and a single merge.
// Instructions bound it.
#pragma once

#include <limits>

#include "../core/order.h"
#include "tile_kernels.cuh"

namespace reidops {

constexpr int kMostNearest = 1024;  // of a list; a longer one is made by sorting whole rows
constexpr int kNearestThreads = 256;

// What fills a list up: after every neighbour.
template <typename T>
REIDOPS_HD constexpr Neighbor<T> nobody() {
  return {std::numeric_limits<T>::infinity(), std::numeric_limits<int32_t>::max()};
}

constexpr int kPending = 2 * kWarp;  // candidates that wait behind a list

// A list and the candidates behind it, in shared memory; worked on by one warp. The list itself is fetched when there is
// something to merge into it.
template <typename T>
class List {
 public:
  // memory: (k + kPending,). stored: (k,), the sorted list so far.
  __device__ __forceinline__ List(Neighbor<T>* memory, Neighbor<T>* stored, int k)
      : entries_(memory), stored_(stored), k_(k), limit_(stored[k - 1]) {}

  // Each lane offers a batch of distances, NaN for none, to points of which index(u) is the u-th. A distance that is not
  // a number is nobody's neighbour. Mostly none is below the limit, and one vote says so.
  template <typename Index>
  __device__ __forceinline__ void offer(const T (&distances)[kBatch], const Index& index) {
    bool some = false;
#pragma unroll
    for (int u = 0; u < kBatch; ++u) some |= distances[u] <= limit_.distance;
    if (!__any_sync(kAllLanes, some)) return;
    unsigned which = 0;  // elements that some lane wants
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      which |= static_cast<unsigned>(__any_sync(kAllLanes, distances[u] <= limit_.distance) != 0) << u;
    }
#pragma unroll 1
    for (; which != 0; which &= which - 1) {
      const int u = __ffs(which) - 1;
      T distance = distances[0];
#pragma unroll
      for (int other = 1; other < kBatch; ++other) distance = u == other ? distances[other] : distance;
      append({distance, static_cast<int32_t>(index(u))});
    }
  }

  __device__ __forceinline__ void store() {
    if (count_ > 0) merge();
    if (!fetched_) return;
#pragma unroll 1
    for (int r = threadIdx.x % kWarp; r < k_; r += kWarp) stored_[r] = entries_[r];
    __syncwarp();
  }

 private:
  __device__ __forceinline__ Neighbor<T>* pending() const { return entries_ + k_; }

  __device__ __forceinline__ void append(Neighbor<T> neighbor) {
    const bool wanted = neighbor.before(limit_);
    const unsigned lanes = __ballot_sync(kAllLanes, wanted);
    if (wanted) pending()[count_ + count_below(lanes, threadIdx.x % kWarp)] = neighbor;
    count_ += __popc(lanes);
    if (count_ >= kWarp) merge();
  }

  // The first 32 candidates into the list. Both sorted, an entry's place is its own and as many further as there are
  // entries before it on the other side.
  __device__ __forceinline__ void merge() {
    const int lane = threadIdx.x % kWarp;
    if (!fetched_) {
#pragma unroll 1
      for (int r = lane; r < k_; r += kWarp) entries_[r] = stored_[r];
      fetched_ = true;
    }
    __syncwarp();
    Neighbor<T> candidate = lane < count_ ? pending()[lane] : nobody<T>();
    candidate = sorted(candidate);
    __syncwarp();
    pending()[lane] = candidate;
    const int before = count_before(entries_, k_, candidate), first = __shfl_sync(kAllLanes, before, 0);
    __syncwarp();
    // From the last entry on, so that an entry moves to where all have left; up to the first candidate none moves.
    for (int r = (k_ - 1) / kWarp * kWarp + lane; r - lane + kWarp > first; r -= kWarp) {
      const Neighbor<T> entry = r < k_ ? entries_[r] : nobody<T>();
      const int place = r + count_before(pending(), kWarp, entry);
      __syncwarp();
      if (place < k_) entries_[place] = entry;
    }
    __syncwarp();
    if (lane < count_ && lane + before < k_) entries_[lane + before] = candidate;
    if (kWarp + lane < count_) pending()[lane] = pending()[kWarp + lane];
    __syncwarp();
    count_ = count_ > kWarp ? count_ - kWarp : 0;
    limit_ = entries_[k_ - 1];
  }

  // The candidates of the warp in order, of which all from count_ on are nobody.
  __device__ __forceinline__ Neighbor<T> sorted(Neighbor<T> mine) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll 1
    for (int size = 2; size <= kWarp && size < 2 * count_; size *= 2) {
#pragma unroll 1
      for (int step = size / 2; step > 0; step /= 2) {
        const Neighbor<T> other = {__shfl_xor_sync(kAllLanes, mine.distance, step),
                                   __shfl_xor_sync(kAllLanes, mine.index, step)};
        const bool lower = (lane & step) == 0, ascending = (lane & size) == 0;
        if (lower == ascending ? other.before(mine) : mine.before(other)) mine = other;
      }
    }
    return mine;
  }

  // How many of the sorted entries come before `neighbor`.
  static __device__ __forceinline__ int count_before(const Neighbor<T>* entries, int count, Neighbor<T> neighbor) {
    int first = 0;
    while (count > 0) {
      const int half = count / 2;
      const bool before = entries[first + half].before(neighbor);
      first = before ? first + half + 1 : first;
      count = before ? count - half - 1 : half;
    }
    return first;
  }

  Neighbor<T>*entries_, *stored_;
  int k_, count_ = 0;  // count_: candidates, fewer than 32 between two calls
  Neighbor<T> limit_;
  bool fetched_ = false;
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
  largest = warp_max(largest);
  if (threadIdx.x % kWarp == 0 && largest > side.maximum[point]) side.maximum[point] = largest;
}

// A warp a row. entries: (k + kPending,) of the warp.
template <typename T>
__device__ __forceinline__ void nearest_of_row(const Tile<T>& tile, const NearestSide<T>& side, int64_t point, int k,
                                               Neighbor<T>* entries) {
  List<T> list(entries, side.lists + point * k, k);
  T largest = T(0);
  for_each_batch(tile, side.first + point, side.others, [&](int64_t start, const T(&distances)[kBatch]) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) largest = distances[u] > largest ? distances[u] : largest;
    list.offer(distances, [&](int u) { return side.first_id + start + batch_column<kGroup<T>>(u); });
  });
  list.store();
  raise_maximum(side, point, largest);
}

// A block takes as many columns as it has warps, 8, reads 256 rows of them at a time in whole sectors of 32 bytes, and
// turns them over in shared memory, where a warp finds its own. While it looks at them, the next 256 rows are on their
// way. turned: (2, warps, kTurnedPitch); with two of them, one barrier for 256 rows is enough.
constexpr int kTurnedRows = kBatch * kWarp;
constexpr int kTurnedPitch = kTurnedRows + 4;  // a warp writes 4 rows of 8 columns: 32 banks

template <typename T>
__device__ __forceinline__ void nearest_of_columns(const Tile<T>& tile, const NearestSide<T>& side, int64_t block,
                                                   int k, Neighbor<T>* entries, T* turned) {
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, width = blockDim.x / kWarp;
  // A warp beyond the last column only reads for the others.
  const bool mine = block * width + warp < side.count, products = tile.row_norms != nullptr;
  const int64_t point = mine ? block * width + warp : side.count - 1;
  const T column_norm = products ? tile.column_norms[(side.first + point) * tile.column_step] : T(0);
  List<T> list(entries, side.lists + point * k, k);
  T largest = T(0);

  // This thread reads one column, every 32nd row.
  const int read_row = threadIdx.x / width, read_column = threadIdx.x % width;
  const int64_t last = side.count - 1, column = block * width + read_column;
  const T* from = tile.values + read_row * tile.stride + side.first + (column < last ? column : last);
  T* const to = turned + read_column * kTurnedPitch + read_row;
  T next[kBatch];
  const auto read = [&](int64_t start) {
    if (start + kTurnedRows <= side.others) {
#pragma unroll
      for (int u = 0; u < kBatch; ++u) next[u] = from[u * kWarp * tile.stride];
    } else {
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        next[u] = start + u * kWarp + read_row < side.others ? from[u * kWarp * tile.stride] : kNan;
      }
    }
    from += kTurnedRows * tile.stride;
  };
  read(0);
  int half = 0;  // of `turned`
  for (int64_t start = 0; start < side.others; start += kTurnedRows) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) to[half + u * kWarp] = next[u];
    __syncthreads();
    read(start + kTurnedRows);
    T distances[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) distances[u] = turned[half + warp * kTurnedPitch + lane + u * kWarp];
    half = width * kTurnedPitch - half;
    if (!mine) continue;
    if (products) {
      T norms[kBatch];
      load_batch<1>(tile.row_norms, tile.row_step, tile.row_step == 1, start, side.others, kNan, norms);
#pragma unroll
      for (int u = 0; u < kBatch; ++u) distances[u] = tile.distance(distances[u], norms[u] + column_norm);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) largest = distances[u] > largest ? distances[u] : largest;
    list.offer(distances, [&](int u) { return side.first_id + start + batch_column<1>(u); });
  }
  if (mine) {
    list.store();
    raise_maximum(side, point, largest);
  }
}

// The first row_blocks blocks take the rows, a warp a row, the others the columns. Each warp has k + kPending entries of
// shared memory, and the block two T more for every turned element.
template <typename T>
__global__ void __launch_bounds__(kNearestThreads, sizeof(T) == 4 ? 4 : 2)
    nearest_kernel(Tile<T> tile, NearestSide<T> rows, int64_t row_blocks, NearestSide<T> columns, int64_t blocks,
                   int k) {
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  Neighbor<T>* const entries = shared_memory<Neighbor<T>>() + warp * (k + kPending);
  T* const turned = reinterpret_cast<T*>(shared_memory<Neighbor<T>>() + warps * (k + kPending));
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    if (block < row_blocks) {
      const int64_t point = block * warps + warp;
      if (point < rows.count) nearest_of_row(tile, rows, point, k, entries);
    } else {
      nearest_of_columns(tile, columns, block - row_blocks, k, entries, turned);
    }
    __syncthreads();  // before the next lists and rows are loaded over these
  }
}

}  // namespace reidops
