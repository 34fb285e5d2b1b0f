// Packing of matrix rows into the panels that Kernels::multiply reads.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace reidops {

// One panel: packed[k * width + w] = row(w)[k * depth_stride] - centre[k], zeros for w >= rows; no centre where it is
// null. row(w) gives the address of a row. Blocks of 16 steps of depth keep the lines being written in the first-level
// cache.
template <typename T, typename Row>
void pack_panel(Row row, int64_t rows, int64_t depth, int64_t depth_stride, int64_t width, const T* centre, T* packed) {
  constexpr int64_t kBlock = 16;
  for (int64_t k0 = 0; k0 < depth; k0 += kBlock) {
    const int64_t k1 = std::min(depth, k0 + kBlock);
    for (int64_t w = 0; w < width; ++w) {
      if (w >= rows) {
        for (int64_t k = k0; k < k1; ++k) packed[k * width + w] = T(0);
        continue;
      }
      const T* x = row(w);
      if (centre != nullptr) {
        for (int64_t k = k0; k < k1; ++k) packed[k * width + w] = x[k * depth_stride] - centre[k];
      } else {
        for (int64_t k = k0; k < k1; ++k) packed[k * width + w] = x[k * depth_stride];
      }
    }
  }
}

// All panels of `rows` consecutive rows, `row_stride` elements apart. packed: ceil(rows / width) * depth * width
// elements.
template <typename T>
void pack_rows(const T* x, int64_t rows, int64_t row_stride, int64_t depth, int64_t depth_stride, int64_t width,
               const T* centre, T* packed) {
  for (int64_t r = 0; r < rows; r += width) {
    pack_panel([&](int64_t w) { return x + (r + w) * row_stride; }, std::min(width, rows - r), depth, depth_stride,
               width, centre, packed + r * depth);
  }
}

}  // namespace reidops
