// How float32 values become operands of tensor-core products: rounded to TF32 or bfloat16, or split into three bfloat16
// pieces that hold all their digits.
#pragma once

#include "macros.h"

namespace reidops {

REIDOPS_HD uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}

REIDOPS_HD float bits_float(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(x);
#else
  return __builtin_bit_cast(float, x);
#endif
}

constexpr uint32_t kExponentBits = 0x7f800000u;

// 10 bits of mantissa, to the nearest, ties away from 0. Infinities and NaN stay what they are.
REIDOPS_HD float round_to_tf32(float x) {
  const uint32_t bits = float_bits(x);
  return (bits & kExponentBits) == kExponentBits ? x : bits_float((bits + 0x1000u) & 0xffffe000u);
}

// The 16 bits of the nearest bfloat16, ties to even. A NaN stays a NaN.
REIDOPS_HD uint16_t round_to_bfloat16(float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

REIDOPS_HD float bfloat16_to_float(uint16_t x) { return bits_float(static_cast<uint32_t>(x) << 16); }

// x = pieces[0] + pieces[1] + pieces[2], each 2^-8 of the one before: 3 x 8 bits for float's 24.
REIDOPS_HD void split_bfloat16(float x, uint16_t* pieces) {
  pieces[0] = round_to_bfloat16(x);
  const float rest = x - bfloat16_to_float(pieces[0]);
  pieces[1] = round_to_bfloat16(rest);
  pieces[2] = round_to_bfloat16(rest - bfloat16_to_float(pieces[1]));
}

}  // namespace reidops
