// How products of matrices are computed on this processor: packing of both sides into panels, and the products of panels.
//
// The rows of a matrix are cut into panels: `rows` rows each on the left, a vector's lanes (Kernels::lanes) on the right,
// the last panel filled up with zeros. A panel's steps of the depth follow each other, so that it can be packed in pieces
// of whole steps; what a step looks like inside is the engine's own affair. Engines:
//   simd_products.h      float32 and float64 with the vector unit, at every level
//   simd_avx512_bf16.cpp float32 rounded to bfloat16, with AVX-512's bfloat16 products
//   simd_amx.cpp         float32 in one, two or three bfloat16 pieces, with the matrix unit of newer Intel processors
#pragma once

#include <cstdint>

namespace reidops {

// torch's words: all digits of float32; at least 16 bits of them; at least 8.
enum class Precision { kHighest, kHigh, kMedium };

constexpr int64_t kWidestPanel = 16;

template <typename T>
struct Engine {
  int64_t rows;                   // of a left-hand panel
  int64_t depth_step;             // the depth is filled up with zeros to a multiple of it
  int64_t left_step, right_step;  // bytes that a panel takes for each depth_step
  int64_t tile_rows;              // rows to multiply at once, so that reading right-hand panels costs little beside
  T smallest;                     // squared distances below it may have lost products too small for the engine
  bool symmetric;                 // the product of two rows is the same to the last bit whichever of them stands left

  // rows: addresses of the panel's `count` rows. centre: (depth) values taken from every row, or null.
  void (*pack_left)(const T* const* rows, int64_t count, int64_t depth, const T* centre, unsigned char* panel);
  void (*pack_right)(const T* const* rows, int64_t count, int64_t depth, const T* centre, unsigned char* panel);
  // The same for rows that are columns of x: row r, step k of the depth is x[k * stride + r].
  void (*pack_left_transposed)(const T* x, int64_t stride, int64_t count, int64_t depth, unsigned char* panel);
  void (*pack_right_transposed)(const T* x, int64_t stride, int64_t count, int64_t depth, unsigned char* panel);

  // products[(row panels * rows), (column panels * lanes)] = left @ right^T, rows `stride` elements apart, or with `add`
  // grow by it. A product depends on its two rows alone, not on where they stand: equal rows give equal products.
  void (*multiply)(const unsigned char* left, int64_t row_panels, const unsigned char* right, int64_t column_panels,
                   int64_t depth, T* products, int64_t stride, bool add);

  int64_t steps(int64_t depth) const { return (depth + depth_step - 1) / depth_step; }
  int64_t left_bytes(int64_t depth) const { return steps(depth) * left_step; }
  int64_t right_bytes(int64_t depth) const { return steps(depth) * right_step; }
};

// The fastest engine of the level in use that keeps as many digits as asked.
template <typename T>
const Engine<T>& engine(Precision precision);

// The vector unit's, in which the product of two rows is one chain of fused additions and so symmetric. (Products in
// pieces add up in another order from the other side.)
template <typename T>
const Engine<T>& vector_engine();

}  // namespace reidops
