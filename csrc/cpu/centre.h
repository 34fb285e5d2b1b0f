// The coarse middle of two sets of features (core/centre.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../core/centre.h"

namespace reidops {

// x: (rows_x, depth), y: (rows_y, depth); up to about 2,048 rows of each are looked at.
template <typename T>
std::vector<T> coarse_mean(const T* x, int64_t rows_x, const T* y, int64_t rows_y, int64_t depth) {
  std::vector<double> sums[2];
  std::vector<T> peaks(depth, T(0)), centre(depth, T(0));
  int64_t count = 0;
  const T* sets[2] = {x, y};
  const int64_t rows[2] = {rows_x, rows_y};
  for (int s = 0; s < 2; ++s) {
    sums[s].assign(depth, 0.0);
    for (int64_t r = 0; r < rows[s]; r += sample_step(rows[s]), ++count) {
      const T* row = sets[s] + r * depth;
      for (int64_t k = 0; k < depth; ++k) {
        sums[s][k] += static_cast<double>(row[k]);
        peaks[k] = std::max(peaks[k], std::abs(row[k]));
      }
    }
  }
  for (int64_t k = 0; k < depth; ++k) centre[k] = coarse_middle(sums[0][k] + sums[1][k], count, peaks[k]);
  return centre;
}

}  // namespace reidops
