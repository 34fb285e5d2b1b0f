// Panels of float32 rows as bfloat16 pieces, for the engines of AVX-512's bfloat16 instructions; included by each of
// them inside its own namespace, after the compiler was told which instructions to use.
//
// x = piece 0 + piece 1 + piece 2, each rounded to bfloat16: 3 x 8 bits are float32's 24. Steps of 32 of the depth:
//   left-hand panel   [step][piece][row 16][depth 32]
//   right-hand panel  [step][piece][pair of depth 16][row 16][2], what tile and dot-product instructions read
// A piece of a step takes 1 KB either way, and one is the other turned as a matrix of 16 x 16 pairs.

constexpr int64_t kStep = 32;
constexpr int64_t kPieceBytes = 1024;

// 32 values of a row from k on, less the centre; zeros beyond the depth.
struct Values {
  __m512 low, high;
};

inline __attribute__((always_inline)) __m512 values_at(const float* row, const float* centre, int64_t k,
                                                       int64_t depth) {
  const int64_t left = depth - k;
  const __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? static_cast<__mmask16>((1u << left) - 1) : 0;
  const __m512 x = _mm512_maskz_loadu_ps(mask, row + k);
  return centre ? _mm512_sub_ps(x, _mm512_maskz_loadu_ps(mask, centre + k)) : x;
}

// Takes the next piece off the values.
inline __attribute__((always_inline)) __m512i take_piece(Values& values) {
  const __m512i piece = (__m512i)_mm512_cvtne2ps_pbh(values.high, values.low);
  const __m512i low = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(piece)), 16);
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(piece, 1)), 16);
  values.low = _mm512_sub_ps(values.low, _mm512_castsi512_ps(low));
  values.high = _mm512_sub_ps(values.high, _mm512_castsi512_ps(high));
  return piece;
}

// One step of a panel of 16 rows in the left-hand layout.
template <int kPieces>
inline void pack_step(const float* const* rows, int64_t count, int64_t k, int64_t depth, const float* centre,
                      unsigned char* out) {
  for (int64_t r = 0; r < 16; ++r) {
    Values values = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    if (r < count) values = {values_at(rows[r], centre, k, depth), values_at(rows[r], centre, k + 16, depth)};
    for (int p = 0; p < kPieces; ++p) _mm512_storeu_si512(out + p * kPieceBytes + r * 64, take_piece(values));
  }
}

// A piece of a step turned from the left-hand to the right-hand layout.
inline void turn_piece(const unsigned char* from, unsigned char* to) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_load_si512(from + i * 64);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4 g + c] holds column c, c + 4, c + 8, c + 12 of rows 4 g .. 4 g + 3, one in each quarter.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    b[c] = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x44);      // quarters 0, 1 of both
    b[4 + c] = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xee);  // quarters 2, 3
    b[8 + c] = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x44);
    b[12 + c] = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    _mm512_store_si512(to + c * 64, _mm512_shuffle_i32x4(b[c], b[8 + c], 0x88));
    _mm512_store_si512(to + (4 + c) * 64, _mm512_shuffle_i32x4(b[c], b[8 + c], 0xdd));
    _mm512_store_si512(to + (8 + c) * 64, _mm512_shuffle_i32x4(b[4 + c], b[12 + c], 0x88));
    _mm512_store_si512(to + (12 + c) * 64, _mm512_shuffle_i32x4(b[4 + c], b[12 + c], 0xdd));
  }
}

template <int kPieces>
void pack_left(const float* const* rows, int64_t count, int64_t depth, const float* centre, unsigned char* panel) {
  for (int64_t k = 0; k < depth; k += kStep, panel += kPieces * kPieceBytes) {
    pack_step<kPieces>(rows, count, k, depth, centre, panel);
  }
}

template <int kPieces>
void pack_right(const float* const* rows, int64_t count, int64_t depth, const float* centre, unsigned char* panel) {
  alignas(64) unsigned char step[kPieces * kPieceBytes];
  for (int64_t k = 0; k < depth; k += kStep, panel += kPieces * kPieceBytes) {
    pack_step<kPieces>(rows, count, k, depth, centre, step);
    for (int p = 0; p < kPieces; ++p) turn_piece(step + p * kPieceBytes, panel + p * kPieceBytes);
  }
}

template <int kPieces>
void pack_right_transposed(const float* x, int64_t stride, int64_t count, int64_t depth, unsigned char* panel) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(kInterleave);
  for (int64_t k = 0; k < depth; k += kStep, panel += kPieces * kPieceBytes) {
    for (int64_t pair = 0; pair < kStep / 2; ++pair) {
      const int64_t row = k + 2 * pair;
      Values values = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      if (row < depth) values.low = values_at(x + row * stride, nullptr, 0, count);
      if (row + 1 < depth) values.high = values_at(x + (row + 1) * stride, nullptr, 0, count);
      for (int p = 0; p < kPieces; ++p) {
        _mm512_store_si512(panel + p * kPieceBytes + pair * 64,
                           _mm512_permutexvar_epi16(interleave, take_piece(values)));
      }
    }
  }
}

template <int kPieces>
void pack_left_transposed(const float* x, int64_t stride, int64_t count, int64_t depth, unsigned char* panel) {
  alignas(64) unsigned char step[kPieces * kPieceBytes];
  for (int64_t k = 0; k < depth; k += kStep, panel += kPieces * kPieceBytes) {
    pack_right_transposed<kPieces>(x + k * stride, stride, count, depth - k < kStep ? depth - k : kStep, step);
    for (int p = 0; p < kPieces; ++p) turn_piece(step + p * kPieceBytes, panel + p * kPieceBytes);
  }
}
