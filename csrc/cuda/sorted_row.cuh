// Rows of ascending columns in memory, which a warp searches and lets grow.
#pragma once

#include <limits>

#include "launch.h"

namespace reidops {

// How many of `count` ascending columns are below `column`.
__device__ __forceinline__ int lower_bound(const int32_t* columns, int count, int32_t column) {
  int first = 0;
  while (count > 0) {
    const int half = count / 2;
    const bool below = columns[first + half] < column;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  return first;
}

// The first place of `column` among `count` ascending columns, or -1.
__device__ __forceinline__ int find(const int32_t* columns, int count, int32_t column) {
  const int at = lower_bound(columns, count, column);
  return at < count && columns[at] == column ? at : -1;
}

// One row, with a weight for each column or, where `weights` is null, without. All lanes of a warp hold the same
// values, and call what is here together.
template <typename T>
struct SortedRow {
  int32_t* columns;  // (capacity,), where capacity covers all that is added
  T* weights;        // the same, or null
  int size = 0;

  // Adds the first `count` of other_columns, ascending, with other_weights or, if that is null, zeros. A column that is
  // there already has the weight added to its own. A barrier of the warp stands before the first write and behind the
  // last.
  __device__ __forceinline__ void merge(const int32_t* other_columns, const T* other_weights, int count) {
    const int lane = threadIdx.x % kWarp;
    for (int k = lane; k - lane < count; k += kWarp) {
      const bool any = k < count;
      const int32_t column = any ? other_columns[k] : std::numeric_limits<int32_t>::max();
      const T weight = any && other_weights != nullptr ? other_weights[k] : T(0);
      const int at = lower_bound(columns, size, column);  // ascends from lane to lane
      const bool there = any && at < size && columns[at] == column;
      if (there && weights != nullptr) weights[at] += weight;
      const unsigned fresh = __ballot_sync(kAllLanes, any && !there);
      __syncwarp();  // weights are added, places are found
      if (fresh == 0) continue;
      make_room(fresh, at);
      if (any && !there) {
        const int to = at + count_below(fresh, lane);
        columns[to] = column;
        if (weights != nullptr) weights[to] = weight;
      }
      size += __popc(fresh);
      __syncwarp();
    }
  }

 private:
  // Moves every column behind the fresh ones that go before it. at: where a lane's column goes.
  __device__ __forceinline__ void make_room(unsigned fresh, int at) {
    const int lane = threadIdx.x % kWarp;
    for (int begin = (size + kWarp - 1) / kWarp * kWarp - kWarp; begin >= 0; begin -= kWarp) {
      const int k = begin + lane;
      const bool mine = k < size;
      const int32_t column = mine ? columns[k] : 0;
      const T weight = mine && weights != nullptr ? weights[k] : T(0);
      int lanes = 0;  // whose columns go before this one
      for (int step = kWarp / 2; step > 0; step /= 2) {
        if (__shfl_sync(kAllLanes, at, lanes + step - 1) <= k) lanes += step;
      }
      lanes += __shfl_sync(kAllLanes, at, lanes) <= k;
      const int before = count_below(fresh, lanes);
      __syncwarp();  // these 32 are read before any is written over; what stood behind them has moved away
      if (mine && before > 0) {
        columns[k + before] = column;
        if (weights != nullptr) weights[k + before] = weight;
      }
      if (__shfl_sync(kAllLanes, before, 0) == 0) return;  // nor does any column that comes before move
    }
  }
};

}  // namespace reidops
