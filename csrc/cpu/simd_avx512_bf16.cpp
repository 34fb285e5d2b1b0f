// The engine of AVX-512's bfloat16 products: rows rounded to bfloat16, sums in float32.
//
// One instruction multiplies 32 pairs of values where a fused addition of float32 multiplies 16. The register tile is
// that of float32: 8 rows x 3 vectors in 24 of 32 registers, 24 products hide 11 loads.
#if defined(__x86_64__)
#include <cstdint>

#include "engine.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // said of intrinsics that leave a register undefined
#endif

namespace reidops {
namespace avx512_bf16 {
namespace {

#include "bfloat16_panels.h"

constexpr int64_t kRows = 8;
constexpr int64_t kBlockPairs = 256;  // a right-hand block of 3 x 256 pairs x 16 lanes: 48 KB, as in float32

// Left-hand panels are the right-hand layout with 8 rows: [pair of depth][row 8][2].
void pack_eight(const float* const* rows, int64_t count, int64_t depth, const float* centre, unsigned char* panel) {
  alignas(64) unsigned char step[kPieceBytes], turned[kPieceBytes];
  for (int64_t k = 0; k < depth; k += kStep, panel += kPieceBytes / 2) {
    pack_step<1>(rows, count, k, depth, centre, step);
    turn_piece(step, turned);
    for (int64_t pair = 0; pair < kStep / 2; ++pair) __builtin_memcpy(panel + pair * 32, turned + pair * 64, 32);
  }
}

void pack_eight_transposed(const float* x, int64_t stride, int64_t count, int64_t depth, unsigned char* panel) {
  alignas(64) unsigned char step[kPieceBytes];
  for (int64_t k = 0; k < depth; k += kStep, panel += kPieceBytes / 2) {
    pack_right_transposed<1>(x + k * stride, stride, count, depth - k < kStep ? depth - k : kStep, step);
    for (int64_t pair = 0; pair < kStep / 2; ++pair) __builtin_memcpy(panel + pair * 32, step + pair * 64, 32);
  }
}

template <int kVectors>
inline __attribute__((always_inline)) void multiply_tile(const int32_t* left, const unsigned char* right,
                                                         int64_t panel_bytes, int64_t pairs, bool add, float* products,
                                                         int64_t stride) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = add ? _mm512_loadu_ps(products + r * stride + v * 16) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < pairs; ++k) {
    __m512i columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) columns[v] = _mm512_load_si512(right + v * panel_bytes + k * 64);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh row = (__m512bh)_mm512_set1_epi32(left[k * kRows + r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], row, (__m512bh)columns[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(products + r * stride + v * 16, sums[r][v]);
  }
}

void multiply(const unsigned char* left, int64_t row_panels, const unsigned char* right, int64_t column_panels,
              int64_t depth, float* products, int64_t stride, bool add) {
  const int64_t pairs = (depth + kStep - 1) / kStep * (kStep / 2);
  const int64_t right_panel = pairs * 64;
  for (int64_t k = 0; k < pairs; k += kBlockPairs) {
    const int64_t block = pairs - k < kBlockPairs ? pairs - k : kBlockPairs;
    for (int64_t j = 0; j < column_panels; j += j + 3 <= column_panels ? 3 : 1) {
      for (int64_t i = 0; i < row_panels; ++i) {
        const int32_t* rows = reinterpret_cast<const int32_t*>(left) + (i * pairs + k) * kRows;
        const unsigned char* columns = right + j * right_panel + k * 64;
        float* sums = products + i * kRows * stride + j * 16;
        if (j + 3 <= column_panels) {
          multiply_tile<3>(rows, columns, right_panel, block, add || k > 0, sums, stride);
        } else {
          multiply_tile<1>(rows, columns, right_panel, block, add || k > 0, sums, stride);
        }
      }
    }
  }
}

// As in simd_amx.cpp: products below 1.2e-38 count as 0.
constexpr Engine<float> kEngine = {kRows,
                                   kStep,
                                   kPieceBytes / 2,
                                   kPieceBytes,
                                   128,
                                   1e-25f,
                                   true,
                                   pack_eight,
                                   pack_right<1>,
                                   pack_eight_transposed,
                                   pack_right_transposed<1>,
                                   multiply};

}  // namespace

const Engine<float>* medium_engine() { return &kEngine; }

}  // namespace avx512_bf16
}  // namespace reidops

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
