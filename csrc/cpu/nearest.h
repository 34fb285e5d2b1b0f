// The k nearest of a stream of distances, ascending, equal distances by the lower index.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../core/order.h"
#include "simd.h"

namespace reidops {

// Candidates below the k-th best so far are collected and cut back to k when twice as many have come: constant time a
// candidate.
template <typename T>
class Nearest {
 public:
  void start(int64_t k) {
    k_ = k;
    limit_ = std::numeric_limits<T>::infinity();
    kept_.clear();
  }

  // distances[j] belongs to index first + j; indices come in ascending order, so that one equal to the limit loses its
  // tie.
  void add(const T* distances, int64_t count, int64_t first, const Kernels<T>& kernel) {
    constexpr int64_t kBlock = 256;
    for (int64_t j0 = 0; j0 < count; j0 += kBlock) {
      const int64_t width = std::min(kBlock, count - j0);
      if (full()) {
        T smallest = std::numeric_limits<T>::infinity(), largest = T(0);
        kernel.extrema(distances + j0, width, &smallest, &largest);
        if (!(smallest < limit_)) continue;
      }
      for (int64_t j = j0; j < j0 + width; ++j) {
        const bool number = distances[j] == distances[j];
        if (distances[j] < limit_ || (number && !full())) push(distances[j], first + j);
      }
    }
  }

  // Writes the k nearest, or as many as came; returns how many.
  template <typename Index>
  int64_t finish(T* distances, Index* indices) {
    cut();
    std::sort(kept_.begin(), kept_.end());
    for (size_t r = 0; r < kept_.size(); ++r) {
      if (distances != nullptr) distances[r] = kept_[r].distance;
      indices[r] = static_cast<Index>(kept_[r].index);
    }
    return static_cast<int64_t>(kept_.size());
  }

 private:
  struct Entry {
    T distance;
    int64_t index;
    bool operator<(const Entry& o) const { return ranks_before(distance, index, o.distance, o.index); }
  };

  bool full() const { return limit_ < std::numeric_limits<T>::infinity(); }

  void push(T distance, int64_t index) {
    kept_.push_back({distance, index});
    if (static_cast<int64_t>(kept_.size()) >= 2 * k_ + 32) cut();
  }

  void cut() {
    if (static_cast<int64_t>(kept_.size()) < k_) return;
    if (static_cast<int64_t>(kept_.size()) > k_) {
      std::nth_element(kept_.begin(), kept_.begin() + (k_ - 1), kept_.end());
      kept_.resize(k_);
    }
    limit_ = std::max_element(kept_.begin(), kept_.end())->distance;
  }

  int64_t k_ = 0;
  T limit_ = std::numeric_limits<T>::infinity();
  std::vector<Entry> kept_;
};

}  // namespace reidops
