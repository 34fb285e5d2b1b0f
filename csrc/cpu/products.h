// Matrix products whose right-hand side is packed once and met by blocks of rows, a thread each.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "engine.h"
#include "parallel.h"
#include "simd.h"

namespace reidops {

template <typename T>
struct Values {
  const T* data;
  int64_t count;
};

// The fastest engine that keeps all digits of products of these values: those in pieces lose what is below 1e-38, and
// overflow a little earlier than float32 does.
template <typename T>
const Engine<T>& engine_for_values(std::initializer_list<Values<T>> arrays) {
  const Engine<T>& fastest = engine<T>(Precision::kHighest);
  for (const Values<T>& values : arrays) {
    if (fastest.smallest == T(0)) break;
    constexpr int64_t kBlock = 1 << 16;
    std::vector<T> peaks(ceil_div(values.count, kBlock), T(0));
    parallel_tasks(static_cast<int64_t>(peaks.size()), kBlock, [&](int64_t block, int64_t) {
      T smallest = T(0), largest = T(0);
      kernels<T>().extrema(values.data + block * kBlock, std::min(kBlock, values.count - block * kBlock), &smallest,
                           &largest);
      peaks[block] = std::max(-smallest, largest);
    });
    const T peak = peaks.empty() ? T(0) : *std::max_element(peaks.begin(), peaks.end());
    if (peak > T(1e18) || (peak > T(0) && peak < T(1e-18))) return vector_engine<T>();
  }
  return fastest;
}

constexpr int64_t kPackingWork = 32;  // multiply-adds in the time that packing an element takes

// Packs consecutive rows, `stride` elements apart, into left-hand panels.
template <typename T>
void pack_left_rows(const Engine<T>& engine, const T* x, int64_t rows, int64_t stride, int64_t depth, const T* centre,
                    unsigned char* packed) {
  const T* panel[kWidestPanel];
  for (int64_t r = 0; r < rows; r += engine.rows, packed += engine.left_bytes(depth)) {
    const int64_t count = std::min(engine.rows, rows - r);
    for (int64_t w = 0; w < count; ++w) panel[w] = x + (r + w) * stride;
    engine.pack_left(panel, count, depth, centre, packed);
  }
}

// The right-hand side of a product, packed by all threads.
template <typename T>
class Right {
 public:
  explicit Right(const Engine<T>& engine) : engine_(engine) {}

  // x: (rows, depth)
  void pack_plain(const T* x, int64_t rows, int64_t depth) {
    pack(rows, depth, [&](int64_t first, int64_t count, unsigned char* to) {
      const T* panel[kWidestPanel];
      for (int64_t w = 0; w < count; ++w) panel[w] = x + (first + w) * depth;
      engine_.pack_right(panel, count, depth, nullptr, to);
    });
  }
  // x: (depth, rows)
  void pack_transposed(const T* x, int64_t rows, int64_t depth) {
    pack(rows, depth, [&](int64_t first, int64_t count, unsigned char* to) {
      engine_.pack_right_transposed(x + first, rows, count, depth, to);
    });
  }

  int64_t stride() const { return row_stride(panels_ * lanes_, lanes_); }  // of the rows of a product
  int64_t depth() const { return depth_; }
  const unsigned char* get() const { return packed_.get(); }
  int64_t panels() const { return panels_; }

 private:
  template <typename PackPanel>
  void pack(int64_t rows, int64_t depth, const PackPanel& pack_panel) {
    depth_ = depth;
    panels_ = ceil_div(rows, lanes_);
    unsigned char* packed = packed_.reserve(panels_ * engine_.right_bytes(depth));
    parallel_ranges(panels_, kPackingWork * depth * lanes_, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        pack_panel(p * lanes_, std::min(lanes_, rows - p * lanes_), packed + p * engine_.right_bytes(depth));
      }
    });
  }

  const Engine<T>& engine_;
  const int64_t lanes_ = kernels<T>().lanes;
  Scratch<unsigned char> packed_;
  int64_t panels_ = 0, depth_ = 0;
};

// One thread's products of a block of rows with a right-hand side.
template <typename T>
class BlockProduct {
 public:
  explicit BlockProduct(const Engine<T>& engine) : engine_(engine) {}

  // (rows, depth) rows `stride` apart times right^T; the result has rows right.stride() apart.
  T* multiply(const T* left, int64_t rows, int64_t stride, const Right<T>& right, Scratch<T>& result) {
    const int64_t panels = ceil_div(rows, engine_.rows), depth = right.depth();
    unsigned char* packed = packed_.reserve(panels * engine_.left_bytes(depth));
    pack_left_rows(engine_, left, rows, stride, depth, static_cast<const T*>(nullptr), packed);
    T* products = result.reserve(panels * engine_.rows * right.stride());
    engine_.multiply(packed, panels, right.get(), right.panels(), depth, products, right.stride(), false);
    return products;
  }

 private:
  const Engine<T>& engine_;
  Scratch<unsigned char> packed_;
};

}  // namespace reidops
