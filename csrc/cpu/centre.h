// A point in the middle of the features, which distances are computed around.
//
// |x|^2 + |y|^2 - 2 x . y loses digits in proportion to the norms, and features after a ReLU lie far from 0, close to each
// other. Around their middle the norms are as small as the distances. The middle is rounded so coarsely, to a 64th of each
// channel's largest value, that subtracting it is exact for integers and for most values near it: equal distances stay equal.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace reidops {

// x: (rows_x, depth), y: (rows_y, depth); at most about 1,024 rows of each are looked at.
template <typename T>
std::vector<T> coarse_mean(const T* x, int64_t rows_x, const T* y, int64_t rows_y, int64_t depth) {
  constexpr int64_t kSamples = 1024;
  std::vector<double> sums[2];
  std::vector<T> peaks(depth, T(0)), centre(depth, T(0));
  int64_t count = 0;
  const T* sets[2] = {x, y};
  const int64_t rows[2] = {rows_x, rows_y};
  for (int s = 0; s < 2; ++s) {
    sums[s].assign(depth, 0.0);
    const int64_t step = std::max<int64_t>(1, rows[s] / kSamples);
    for (int64_t r = 0; r < rows[s]; r += step, ++count) {
      const T* row = sets[s] + r * depth;
      for (int64_t k = 0; k < depth; ++k) {
        sums[s][k] += static_cast<double>(row[k]);
        peaks[k] = std::max(peaks[k], std::abs(row[k]));
      }
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    if (!(peaks[k] > T(0)) || !std::isfinite(peaks[k])) continue;
    const double grid = std::ldexp(1.0, std::ilogb(peaks[k]) - 6);
    const double middle = std::nearbyint((sums[0][k] + sums[1][k]) / static_cast<double>(count) / grid) * grid;
    if (std::isfinite(middle)) centre[k] = static_cast<T>(middle);
  }
  return centre;
}

}  // namespace reidops
