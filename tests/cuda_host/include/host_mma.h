// The tensor-core instructions of csrc/cuda/mma.cuh, from the layouts that the PTX ISA gives for ldmatrix (.m8n8) and
// mma (.m16n8k16). Products are summed in float32 in ascending order; the hardware's order and rounding are its own.
#pragma once

#include "cuda_runtime.h"

namespace machine {

// What `lane` brought to the exchange.
template <typename T>
const T& of_lane(const unsigned char* all, int lane) {
  return *reinterpret_cast<const T*>(all + lane * kLaneBytes);
}

inline void ldmatrix_x4(unsigned (&to)[4], const void* row, bool transposed, const Place& place) {
  check_shared(row, 16, place);
  const unsigned char* all = exchange(&row, sizeof row, ~0u, place);
  const int g = lane() / 4, q = lane() % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto row_at = [&](int r) { return of_lane<const void*>(all, 8 * matrix + r); };
    if (transposed) {
      const auto at = [&](int r) { return unsigned(static_cast<const uint16_t*>(row_at(r))[g]); };
      to[matrix] = at(2 * q) | at(2 * q + 1) << 16;
    } else {
      to[matrix] = static_cast<const unsigned*>(row_at(g))[q];
    }
  }
}

// A lane's part of the two factors: registers of two values each.
struct Fragments {
  float a[4][2], b[2][2];
};

}  // namespace machine

namespace reidops {

inline void ldmatrix_x4(unsigned (&to)[4], const void* row, MACHINE_HERE) {
  machine::ldmatrix_x4(to, row, false, {"ldmatrix", file, line});
}
inline void ldmatrix_x4_trans(unsigned (&to)[4], const void* row, MACHINE_HERE) {
  machine::ldmatrix_x4(to, row, true, {"ldmatrix.trans", file, line});
}

template <typename T>
void mma_16816(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, MACHINE_HERE) {
  machine::Fragments mine;
  const auto unpack_to = [](float (&to)[2], unsigned packed) {
    const Pair pair = unpack<T>(packed);
    to[0] = pair.low;
    to[1] = pair.high;
  };
  for (int i = 0; i < 4; ++i) unpack_to(mine.a[i], a[i]);
  unpack_to(mine.b[0], b0);
  unpack_to(mine.b[1], b1);
  const unsigned char* all = machine::exchange(&mine, sizeof mine, ~0u, {"mma", file, line});
  const int g = machine::lane() / 4, q = machine::lane() % 4;
  for (int k = 0; k < 16; ++k) {
    // Lane 4 g + k % 8 / 2 holds row g (of a) or column g (of b); k < 8 and k >= 8 lie in different registers.
    const auto fragments = [&](int line) -> const machine::Fragments& {
      return machine::of_lane<machine::Fragments>(all, line * 4 + k % 8 / 2);
    };
    const int upper = k / 8, half = k % 2;
    const float left[2] = {fragments(g).a[2 * upper][half], fragments(g).a[2 * upper + 1][half]};  // rows g, g + 8
    const float right[2] = {fragments(2 * q).b[upper][half], fragments(2 * q + 1).b[upper][half]};
    for (int i = 0; i < 4; ++i) sum[i] += left[i / 2] * right[i % 2];
  }
}

template <typename T>
unsigned pack(float low, float high) {
  return static_cast<T>(low).x | unsigned(static_cast<T>(high).x) << 16;
}

}  // namespace reidops
