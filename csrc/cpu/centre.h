// The coarse middle of sets of features (core/centre.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../core/centre.h"

namespace reidops {

// Up to about 2,048 rows of every set are looked at.
template <typename T>
class CoarseMean {
 public:
  explicit CoarseMean(int64_t depth) : depth_(depth), sums_(depth, 0.0), peaks_(depth, T(0)) {}

  // x: (rows, depth)
  void add(const T* x, int64_t rows) {
    for (int64_t r = 0; r < rows; r += sample_step(rows), ++count_) {
      const T* row = x + r * depth_;
      for (int64_t k = 0; k < depth_; ++k) {
        sums_[k] += static_cast<double>(row[k]);
        peaks_[k] = std::max(peaks_[k], std::abs(row[k]));
      }
    }
  }

  std::vector<T> get() const {
    std::vector<T> centre(depth_);
    for (int64_t k = 0; k < depth_; ++k) centre[k] = coarse_middle(sums_[k], count_, peaks_[k]);
    return centre;
  }

 private:
  int64_t depth_, count_ = 0;
  std::vector<double> sums_;
  std::vector<T> peaks_;
};

}  // namespace reidops
