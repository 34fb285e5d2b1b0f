// Each anchor's farthest sample of its label and nearest of another, from tiles of the batch's distances.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "tiles.h"

namespace reidops {

// Tiles come in any order from several threads; of equal distances the lowest index is kept.
template <typename T>
class HardestTable {
 public:
  static constexpr int32_t kNone = std::numeric_limits<int32_t>::max();

  // labels: of every sample
  explicit HardestTable(const std::vector<int32_t>& labels)
      : labels_(labels.data()),
        positive_(labels.size(), -std::numeric_limits<T>::infinity()),
        negative_(labels.size(), std::numeric_limits<T>::infinity()),
        positive_index_(labels.size(), kNone),
        negative_index_(labels.size(), kNone),
        locks_(new std::mutex[labels.size() / kLockRows + 1]) {}

  void add(const Tile<T>& tile) {
    for (int64_t i = tile.i0; i < tile.i1; ++i) {
      const std::lock_guard<std::mutex> locked(locks_[i / kLockRows]);
      add_row(i, tile.row(i), tile.j0, tile.j1);
    }
    for (int64_t j0 = std::max(tile.j0, tile.mirrored); j0 < tile.j1;) {
      const int64_t j1 = std::min(tile.j1, (j0 / kLockRows + 1) * kLockRows);
      const std::lock_guard<std::mutex> locked(locks_[j0 / kLockRows]);
      for (int64_t i = tile.i0; i < tile.i1; ++i) {
        kernel_.harden(tile.row(i) + (j0 - tile.j0), labels_ + j0, labels_[i], static_cast<int32_t>(i), j1 - j0,
                       positive_.data() + j0, positive_index_.data() + j0, negative_.data() + j0,
                       negative_index_.data() + j0);
      }
      j0 = j1;
    }
  }

  // Squared, where there is an index.
  T positive(int64_t anchor) const { return positive_[anchor]; }
  T negative(int64_t anchor) const { return negative_[anchor]; }
  // kNone where no distance was a number, or none finite.
  int32_t positive_index(int64_t anchor) const { return positive_index_[anchor]; }
  int32_t negative_index(int64_t anchor) const { return negative_index_[anchor]; }

 private:
  static constexpr int64_t kLockRows = 256;

  void add_row(int64_t i, const T* row, int64_t j0, int64_t j1) {
    T farthest = -std::numeric_limits<T>::infinity(), nearest = std::numeric_limits<T>::infinity();
    kernel_.labelled_extrema(row, labels_ + j0, labels_[i], j1 - j0, &farthest, &nearest);
    if (farthest > positive_[i] || (farthest == positive_[i] && j0 < positive_index_[i])) {
      const int32_t index = first(row, farthest, i, j0, j1, true);
      if (farthest > positive_[i] || index < positive_index_[i]) positive_index_[i] = index;
      positive_[i] = farthest;
    }
    if (nearest < negative_[i] || (nearest == negative_[i] && j0 < negative_index_[i])) {
      const int32_t index = first(row, nearest, i, j0, j1, false);
      if (nearest < negative_[i] || index < negative_index_[i]) negative_index_[i] = index;
      negative_[i] = nearest;
    }
  }

  // The first column of that distance whose label is, or is not, that of i.
  int32_t first(const T* row, T distance, int64_t i, int64_t j0, int64_t j1, bool same) const {
    for (int64_t j = j0; j < j1; ++j) {
      if (row[j - j0] == distance && (labels_[j] == labels_[i]) == same) return static_cast<int32_t>(j);
    }
    return kNone;
  }

  const Kernels<T>& kernel_ = kernels<T>();
  const int32_t* labels_;
  std::vector<T> positive_, negative_;
  std::vector<int32_t> positive_index_, negative_index_;
  std::unique_ptr<std::mutex[]> locks_;
};

}  // namespace reidops
