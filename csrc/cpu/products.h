// Matrix products whose right-hand side is packed once and met by blocks of rows, a thread each.
#pragma once

#include <algorithm>

#include "pack.h"
#include "parallel.h"
#include "simd.h"

namespace reidops {

// The right-hand side of a product, packed by all threads.
template <typename T>
class Right {
 public:
  // Row r, step k of the depth: x[r * row_stride + k * depth_stride].
  void pack(const T* x, int64_t rows, int64_t row_stride, int64_t depth, int64_t depth_stride) {
    depth_ = depth;
    panels_ = ceil_div(rows, kernel_.lanes);
    T* packed = packed_.reserve(panels_ * kernel_.lanes * depth);
    parallel_ranges(panels_, 4 * depth * kernel_.lanes, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kernel_.lanes;
      pack_rows(x + first * row_stride, std::min(end * kernel_.lanes, rows) - first, row_stride, depth, depth_stride,
                kernel_.lanes, static_cast<const T*>(nullptr), packed + first * depth);
    });
  }
  void pack_plain(const T* x, int64_t rows, int64_t depth) { pack(x, rows, depth, depth, 1); }      // x: (rows, depth)
  void pack_transposed(const T* x, int64_t rows, int64_t depth) { pack(x, rows, 1, depth, rows); }  // x: (depth, rows)

  int64_t stride() const { return panels_ * kernel_.lanes; }
  int64_t depth() const { return depth_; }
  const T* get() const { return packed_.get(); }
  int64_t panels() const { return panels_; }

 private:
  const Kernels<T>& kernel_ = kernels<T>();
  Scratch<T> packed_;
  int64_t panels_ = 0, depth_ = 0;
};

// One thread's products of a block of rows with a right-hand side.
template <typename T>
class BlockProduct {
 public:
  // (rows, depth) rows `stride` apart times right^T; the result has rows right.stride() apart.
  T* multiply(const T* left, int64_t rows, int64_t stride, const Right<T>& right, Scratch<T>& result) {
    const int64_t panels = ceil_div(rows, kernel_.rows);
    T* packed = packed_.reserve(panels * kernel_.rows * right.depth());
    pack_rows(left, rows, stride, right.depth(), 1, kernel_.rows, static_cast<const T*>(nullptr), packed);
    T* products = result.reserve(panels * kernel_.rows * right.stride());
    kernel_.multiply(packed, panels, right.get(), right.panels(), right.depth(), products, right.stride());
    return products;
  }

 private:
  const Kernels<T>& kernel_ = kernels<T>();
  Scratch<T> packed_;
};

}  // namespace reidops
