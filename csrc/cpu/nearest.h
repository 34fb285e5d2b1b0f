// The k nearest of streams of distances, ascending, equal distances by the lower index.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "../core/order.h"
#include "parallel.h"
#include "simd.h"
#include "tiles.h"

namespace reidops {

// The k nearest columns of every row, from tiles that come in any order from several threads. Candidates at most as far
// as the k-th best so far are collected, and cut back to k when twice as many have come: constant time a candidate.
// Distances that are not numbers are nobody's neighbours. Memory: at most 2 k + 32 candidates a row.
template <typename T>
class NearestTable {
 public:
  NearestTable(int64_t rows, int64_t columns, int64_t k)
      : rows_(rows),
        k_(k),
        capacity_(std::min(2 * k + 32, columns)),
        limits_(rows, std::numeric_limits<T>::infinity()),
        counts_(rows, 0),
        locks_(new std::mutex[ceil_div(rows, kLockRows)]) {
    entries_.reserve(rows * capacity_);
  }

  // Takes a tile, column j under the index j - shift; mirrored columns take it as rows, too. With `largest` (one a row)
  // the rows' largest distances are kept up.
  void add(const Tile<T>& tile, int64_t shift = 0, T* largest = nullptr) {
    for (int64_t i0 = tile.i0; i0 < tile.i1; i0 = group_end(i0, tile.i1)) {
      const int64_t i1 = group_end(i0, tile.i1);
      const std::lock_guard<std::mutex> rows_locked(locks_[i0 / kLockRows]);
      const int64_t once = std::min(tile.j1, tile.mirrored);
      if (tile.j0 < once) add_part(tile, i0, i1, tile.j0, once, false, shift, largest);
      for (int64_t j0 = std::max(tile.j0, tile.mirrored); j0 < tile.j1; j0 = group_end(j0, tile.j1)) {
        std::unique_lock<std::mutex> columns_locked;  // in ascending order, so that threads do not wait in a circle
        if (j0 / kLockRows != i0 / kLockRows) columns_locked = std::unique_lock<std::mutex>(locks_[j0 / kLockRows]);
        add_part(tile, i0, i1, j0, group_end(j0, tile.j1), true, shift, largest);
      }
    }
  }

  // Writes the k nearest of a row, or as many as came; returns how many.
  template <typename Index>
  int64_t finish(int64_t row, T* distances, Index* indices) {
    Entry* first = entries(row);
    cut(row);
    std::sort(first, first + counts_[row]);
    for (int64_t r = 0; r < counts_[row]; ++r) {
      if (distances != nullptr) distances[r] = first[r].distance;
      indices[r] = static_cast<Index>(first[r].index);
    }
    return counts_[row];
  }

 private:
  struct Entry {
    T distance;
    int64_t index;
    bool operator<(const Entry& o) const { return ranks_before(distance, index, o.distance, o.index); }
  };
  static constexpr int64_t kLockRows = 256;
  static constexpr int64_t kScan = 128, kLook = 16;  // columns looked at together, and where one of them is near

  static int64_t group_end(int64_t row, int64_t end) { return std::min(end, (row / kLockRows + 1) * kLockRows); }
  Entry* entries(int64_t row) { return entries_.get() + row * capacity_; }

  void add_part(const Tile<T>& tile, int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool mirrored, int64_t shift,
                T* largest) {
    for (int64_t i = i0; i < i1; ++i) {
      const T* row = tile.row(i) - tile.j0;
      for (int64_t j = j0; j < j1; j += kScan) {
        const int64_t width = std::min(kScan, j1 - j);
        const bool near = kernel_.scan(row + j, width, limits_[i], mirrored ? limits_.data() + j : nullptr,
                                       largest ? largest + i : nullptr, largest && mirrored ? largest + j : nullptr);
        for (int64_t c0 = j; near && c0 < j + width; c0 += kLook) {
          const int64_t c1 = std::min(j + width, c0 + kLook);
          if (!kernel_.scan(row + c0, c1 - c0, limits_[i], mirrored ? limits_.data() + c0 : nullptr, nullptr,
                            nullptr)) {
            continue;
          }
          for (int64_t c = c0; c < c1; ++c) {
            if (row[c] <= limits_[i]) push(i, row[c], c - shift);
            if (mirrored && row[c] <= limits_[c]) push(c, row[c], i - shift);
          }
        }
      }
    }
  }

  void push(int64_t row, T distance, int64_t index) {
    entries(row)[counts_[row]++] = {distance, index};
    if (counts_[row] == capacity_) cut(row);
  }

  // Leaves the k best.
  void cut(int64_t row) {
    if (counts_[row] < k_) return;
    Entry* first = entries(row);
    if (counts_[row] > k_) std::nth_element(first, first + (k_ - 1), first + counts_[row]);
    counts_[row] = k_;
    limits_[row] = std::max_element(first, first + k_)->distance;
  }

  const int64_t rows_, k_, capacity_;
  const Kernels<T>& kernel_ = kernels<T>();
  std::vector<T> limits_;  // distance of the k-th best so far, infinite until there are so many
  std::vector<int64_t> counts_;
  Scratch<Entry> entries_;
  std::unique_ptr<std::mutex[]> locks_;
};

}  // namespace reidops
