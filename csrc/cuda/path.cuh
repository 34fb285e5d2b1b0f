// accumulate_path of core/path.h, done by the lanes of a warp together: the cells of an anti-diagonal (i + j constant)
// only need those of the one before. Every cell is the same sum as there, bit for bit.
#pragma once

#include <cstdint>

namespace reidops {

// total: (m, n), the costs on entry, in shared or global memory. Called by whole warps; `lanes` neighbouring lanes
// share a matrix, and all matrices of a warp have the same shape. m + n - 2 steps, the work of ceil(min(m, n) / lanes)
// cells each: an 8 x 8 matrix takes 14 steps where one thread would take 64.
template <typename T>
__device__ __forceinline__ void accumulate_path_in_warp(T* total, int m, int n, int lane, int lanes) {
  for (int diagonal = 1; diagonal < m + n - 1; ++diagonal) {
    __syncwarp();
    const int first = diagonal < n ? 0 : diagonal - n + 1;
    const int last = diagonal < m ? diagonal : m - 1;
    for (int i = first + lane; i <= last; i += lanes) {
      const int j = diagonal - i;
      T* cell = total + int64_t(i) * n + j;
      if (i == 0) {
        *cell += cell[-1];
      } else if (j == 0) {
        *cell += cell[-n];
      } else {
        const T up = cell[-n], left = cell[-1];
        *cell += up < left ? up : left;
      }
    }
  }
  __syncwarp();
}

}  // namespace reidops
