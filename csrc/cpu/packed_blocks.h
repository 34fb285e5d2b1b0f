// One side of products of matrices cut into blocks that stay in the second-level cache, each block packed as a matrix of
// its own.
#pragma once

#include <algorithm>

#include "engine.h"
#include "parallel.h"
#include "simd.h"

namespace reidops {

enum class Side { kLeft, kRight };

template <typename T, Side kSide>
class PackedBlocks {
 public:
  explicit PackedBlocks(const Engine<T>& engine) : engine_(engine) {}

  // Room for `count` blocks of up to (rows, depth).
  void reserve(int64_t count, int64_t rows, int64_t depth) {
    block_bytes_ = panels(rows) * panel_bytes(depth);
    packed_.reserve(count * block_bytes_);
  }

  // x: (rows, depth), rows `stride` elements apart
  void pack(int64_t block, const T* x, int64_t stride, int64_t rows, int64_t depth) {
    const auto pack_panel = kSide == Side::kLeft ? engine_.pack_left : engine_.pack_right;
    for (int64_t p = 0; p < panels(rows); ++p) {
      const int64_t first = p * width_, count = std::min(width_, rows - first);
      const T* panel[kWidestPanel];
      for (int64_t w = 0; w < count; ++w) panel[w] = x + (first + w) * stride;
      pack_panel(panel, count, depth, nullptr, at(block) + p * panel_bytes(depth));
    }
  }

  // x: (depth, rows)
  void pack_transposed(int64_t block, const T* x, int64_t stride, int64_t rows, int64_t depth) {
    const auto pack_panel = kSide == Side::kLeft ? engine_.pack_left_transposed : engine_.pack_right_transposed;
    for (int64_t p = 0; p < panels(rows); ++p) {
      const int64_t first = p * width_;
      pack_panel(x + first, stride, std::min(width_, rows - first), depth, at(block) + p * panel_bytes(depth));
    }
  }

  int64_t panels(int64_t rows) const { return ceil_div(rows, width_); }
  const unsigned char* operator[](int64_t block) const { return packed_.get() + block * block_bytes_; }

 private:
  unsigned char* at(int64_t block) { return packed_.get() + block * block_bytes_; }
  int64_t panel_bytes(int64_t depth) const {
    return kSide == Side::kLeft ? engine_.left_bytes(depth) : engine_.right_bytes(depth);
  }

  const Engine<T>& engine_;
  const int64_t width_ = kSide == Side::kLeft ? engine_.rows : kernels<T>().lanes;
  Scratch<unsigned char> packed_;
  int64_t block_bytes_ = 0;
};

template <typename T>
using LeftBlocks = PackedBlocks<T, Side::kLeft>;
template <typename T>
using RightBlocks = PackedBlocks<T, Side::kRight>;

}  // namespace reidops
