// The cheapest monotone path through an (m, n) matrix of costs, from [0, 0] to [m-1, n-1], moving right or down, both
// end cells included (AlignedReID, equation 3):
//
//   total[i, j] = cost[i, j] + min(total[i - 1, j], total[i, j - 1])
//
// Tie rule: the path is traced back from the end, and goes left where the cells above and to the left cost the same.
#pragma once

#include "macros.h"

namespace reidops {

// total: (m, n), may be cost itself.
template <typename T>
REIDOPS_HD void accumulate_path(const T* cost, int64_t m, int64_t n, T* total) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      T before = T(0);
      if (i > 0 && j > 0) {
        const T up = total[(i - 1) * n + j];
        const T left = total[i * n + j - 1];
        before = up < left ? up : left;
      } else if (i > 0) {
        before = total[(i - 1) * n + j];
      } else if (j > 0) {
        before = total[i * n + j - 1];
      }
      total[i * n + j] = cost[i * n + j] + before;
    }
  }
}

// Calls visit(i, j) for each of the m + n - 1 cells of the path, from the end to the start. total: (m, n), accumulated.
template <typename T, typename Visit>
REIDOPS_HD void trace_path(const T* total, int64_t m, int64_t n, Visit visit) {
  int64_t i = m - 1, j = n - 1;
  visit(i, j);
  while (i > 0 || j > 0) {
    const bool go_up = j == 0 || (i > 0 && total[(i - 1) * n + j] < total[i * n + j - 1]);
    if (go_up) {
      --i;
    } else {
      --j;
    }
    visit(i, j);
  }
}

}  // namespace reidops
