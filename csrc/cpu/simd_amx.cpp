// The engine of the matrix unit (AMX) of Intel processors from Sapphire Rapids on.
//
// One instruction multiplies tiles of 16 x 32 and 32 x 16 bfloat16 values and adds to 16 x 16 floats: 16,384 FLOPs in 16
// cycles, sixteen times what the vector unit does in float32. A float32 product in three pieces a side takes the six
// products of pieces that reach float32's last digit (0 0, 0 1, 1 0, 1 1, 0 2, 2 0; the rest is below 2^-24 of it), in
// two pieces three, so that "highest" has room to be 16 / 6 times as fast as float32 itself.
//
// Of the 8 tile registers 4 hold sums of 32 x 32 products and 2 a side hold pieces. A step of 32 in depth takes 24
// products (384 cycles) and 16 loads of 1 KB (128 cycles from L1). Blocks of 16 steps: sums go out and in again (8 KB) once
// for 16 x 384 cycles, the block of 256 rows (768 KB) stays in L2 for all columns, and the next column panels are fetched
// ahead. In one piece a step takes 64 cycles, and 8 steps of all four panels (32 KB) stay in L1. What keeps it below
// its room is the way from L2 to L1, 12 KB a step; of three pieces each step's are fetched a step ahead, worth a tenth.
// (Shorter blocks, whose column panels stay in L1, gain with zeros only: other operands slow the clock more than that.)
#if defined(__x86_64__) && __has_include(<amxbf16intrin.h>)
#include <cstdint>

#include "engine.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                            \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // said of intrinsics that leave a register undefined
#endif

namespace reidops {
namespace amx {
namespace {

#include "bfloat16_panels.h"

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tile registers: sums 0 .. 3 (row panel 0: 0, 1; row panel 1: 2, 3), left-hand pieces 4, 5, right-hand pieces 6, 7.
template <int kRowPanels>
inline __attribute__((always_inline)) void load_left(const unsigned char* const* left, int64_t offset) {
  _tile_loadd(4, left[0] + offset, 64);
  if constexpr (kRowPanels == 2) _tile_loadd(5, left[1] + offset, 64);
}

template <int kColumnPanels>
inline __attribute__((always_inline)) void load_right(const unsigned char* const* right, int64_t offset) {
  _tile_loadd(6, right[0] + offset, 64);
  if constexpr (kColumnPanels == 2) _tile_loadd(7, right[1] + offset, 64);
}

template <int kRowPanels, int kColumnPanels>
inline __attribute__((always_inline)) void multiply_pieces() {
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kColumnPanels == 2) _tile_dpbf16ps(1, 4, 7);
  if constexpr (kRowPanels == 2) _tile_dpbf16ps(2, 5, 6);
  if constexpr (kRowPanels == 2 && kColumnPanels == 2) _tile_dpbf16ps(3, 5, 7);
}

// What lies ahead: of the columns being multiplied, to be fetched into L2, some lines with every step; and the panels that
// come next, whose first step is to be fetched into L1 with the last of this block.
struct Ahead {
  const unsigned char* lines;
  int64_t lines_a_step;
  const unsigned char *left[2], *right[2];
};

inline __attribute__((always_inline)) void fetch_piece(const unsigned char* const* panels, int64_t offset) {
  for (int panel = 0; panel < 2; ++panel) {
#pragma GCC unroll 16
    for (int64_t line = 0; line < kPieceBytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(panels[panel] + offset + line), _MM_HINT_T0);
    }
  }
}

// sums[kRowPanels * 16, kColumnPanels * 16] (+)= left @ right^T over `steps` steps; the smaller products come first.
template <int kPieces, int kRowPanels, int kColumnPanels>
inline void multiply_block(const unsigned char* const* left, const unsigned char* const* right, int64_t steps, bool add,
                           float* sums, int64_t stride, Ahead ahead) {
  const int64_t bytes = stride * 4;
  float* below = sums + 16 * stride;
  if (add) {
    _tile_loadd(0, sums, bytes);
    if constexpr (kColumnPanels == 2) _tile_loadd(1, sums + 16, bytes);
    if constexpr (kRowPanels == 2) _tile_loadd(2, below, bytes);
    if constexpr (kRowPanels == 2 && kColumnPanels == 2) _tile_loadd(3, below + 16, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t at = step * kPieces * kPieceBytes;
    for (int64_t line = 0; line < ahead.lines_a_step; ++line, ahead.lines += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead.lines), _MM_HINT_T1);
    }
    if constexpr (kPieces == 3) {
      const bool last = step + 1 == steps;
      const unsigned char* const* next_left = last ? ahead.left : left;
      const unsigned char* const* next_right = last ? ahead.right : right;
      const int64_t next = last ? 0 : at + kPieces * kPieceBytes;
      load_left<kRowPanels>(left, at);
      load_right<kColumnPanels>(right, at + 2 * kPieceBytes);
      multiply_pieces<kRowPanels, kColumnPanels>();  // 0 2
      fetch_piece(next_left, next);
      load_right<kColumnPanels>(right, at + kPieceBytes);
      multiply_pieces<kRowPanels, kColumnPanels>();  // 0 1
      fetch_piece(next_right, next + 2 * kPieceBytes);
      load_left<kRowPanels>(left, at + kPieceBytes);
      multiply_pieces<kRowPanels, kColumnPanels>();  // 1 1
      fetch_piece(next_right, next + kPieceBytes);
      load_right<kColumnPanels>(right, at);
      multiply_pieces<kRowPanels, kColumnPanels>();  // 1 0
      fetch_piece(next_left, next + kPieceBytes);
      load_left<kRowPanels>(left, at + 2 * kPieceBytes);
      multiply_pieces<kRowPanels, kColumnPanels>();  // 2 0
      fetch_piece(next_right, next);
      load_left<kRowPanels>(left, at);
      multiply_pieces<kRowPanels, kColumnPanels>();  // 0 0
      fetch_piece(next_left, next + 2 * kPieceBytes);
    } else if constexpr (kPieces == 2) {
      load_left<kRowPanels>(left, at);
      load_right<kColumnPanels>(right, at + kPieceBytes);
      multiply_pieces<kRowPanels, kColumnPanels>();  // 0 1
      load_right<kColumnPanels>(right, at);
      multiply_pieces<kRowPanels, kColumnPanels>();  // 0 0
      load_left<kRowPanels>(left, at + kPieceBytes);
      multiply_pieces<kRowPanels, kColumnPanels>();  // 1 0
    } else {
      load_left<kRowPanels>(left, at);
      load_right<kColumnPanels>(right, at);
      multiply_pieces<kRowPanels, kColumnPanels>();
    }
  }
  _tile_stored(0, sums, bytes);
  if constexpr (kColumnPanels == 2) _tile_stored(1, sums + 16, bytes);
  if constexpr (kRowPanels == 2) _tile_stored(2, below, bytes);
  if constexpr (kRowPanels == 2 && kColumnPanels == 2) _tile_stored(3, below + 16, bytes);
}

template <int kPieces>
void multiply(const unsigned char* left, int64_t row_panels, const unsigned char* right, int64_t column_panels,
              int64_t depth, float* products, int64_t stride, bool add) {
  const TileConfiguration configuration;
  _tile_loadconfig(&configuration);
  constexpr int64_t kStepBytes = kPieces * kPieceBytes, kBlockSteps = kPieces == 1 ? 8 : 16;
  const int64_t steps = (depth + kStep - 1) / kStep, panel = steps * kStepBytes;
  const int64_t row_pairs = (row_panels + 1) / 2;
  for (int64_t k = 0; k < steps; k += kBlockSteps) {
    const int64_t block = steps - k < kBlockSteps ? steps - k : kBlockSteps;
    for (int64_t j = 0; j < column_panels; j += 2) {
      const unsigned char* columns[2] = {right + j * panel + k * kStepBytes, right + (j + 1) * panel + k * kStepBytes};
      const bool two_columns = j + 1 < column_panels;
      for (int64_t i = 0; i < row_panels; i += 2) {
        const unsigned char* rows[2] = {left + i * panel + k * kStepBytes, left + (i + 1) * panel + k * kStepBytes};
        float* sums = products + i * 16 * stride + j * 16;
        // The row pairs share out the lines of the next two column panels: the first half of them panel j + 2.
        Ahead ahead{nullptr, 0, {rows[0] + 2 * panel, rows[1] + 2 * panel}, {columns[0], columns[1]}};
        if (i + 2 >= row_panels) {
          ahead.left[0] = left + k * kStepBytes, ahead.left[1] = ahead.left[0] + panel;
          ahead.right[0] += 2 * panel, ahead.right[1] += 2 * panel;
        }
        const int64_t turn = i / 2, half = (row_pairs + 1) / 2, next = j + 2 + turn / half;
        if (next < column_panels) {
          ahead.lines_a_step = (kStepBytes / 64 + half - 1) / half;
          ahead.lines = right + next * panel + k * kStepBytes + turn % half * block * ahead.lines_a_step * 64;
        }
        if (i + 1 < row_panels) {
          two_columns ? multiply_block<kPieces, 2, 2>(rows, columns, block, add || k > 0, sums, stride, ahead)
                      : multiply_block<kPieces, 2, 1>(rows, columns, block, add || k > 0, sums, stride, ahead);
        } else {
          two_columns ? multiply_block<kPieces, 1, 2>(rows, columns, block, add || k > 0, sums, stride, ahead)
                      : multiply_block<kPieces, 1, 1>(rows, columns, block, add || k > 0, sums, stride, ahead);
        }
      }
    }
  }
  _tile_release();
}

// Products below float32's smallest normal number (1.2e-38) count as 0, so that of a squared distance of 1e-25 not more
// than 2^-22 can be lost in 10^6 channels.
template <int kPieces>
constexpr Engine<float> kEngine = {16,
                                   kStep,
                                   kPieces * kPieceBytes,
                                   kPieces * kPieceBytes,
                                   256,
                                   1e-25f,
                                   kPieces == 1,
                                   pack_left<kPieces>,
                                   pack_right<kPieces>,
                                   pack_left_transposed<kPieces>,
                                   pack_right_transposed<kPieces>,
                                   multiply<kPieces>};

}  // namespace

const Engine<float>* engine_of_pieces(int pieces) {
  return pieces == 1 ? &kEngine<1> : pieces == 2 ? &kEngine<2> : &kEngine<3>;
}

}  // namespace amx
}  // namespace reidops

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
