// The instructions of the tensor cores (compute capability 8.0 and later), behind small functions that a whole warp
// calls together. T is Half or BFloat16; two of them travel in 32 bits, the one of the lower index in the low half.
//
// Fragments, as the PTX ISA lays them out for m16n8k16: lane l has g = l / 4 and q = l % 4.
//   a (16 x 16): a[0] = (g, 2q ..), a[1] = (g + 8, 2q ..), a[2] = (g, 2q + 8 ..), a[3] = (g + 8, 2q + 8 ..)
//   b (16 x 8):  b0 = (2q .., g), b1 = (2q + 8 .., g)
//   accumulator (16 x 8): [0] = (g, 2q), [1] = (g, 2q + 1), [2] = (g + 8, 2q), [3] = (g + 8, 2q + 1)
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace reidops {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

struct Pair {
  float low, high;
};

template <typename T>
__device__ __forceinline__ Pair unpack(unsigned packed) {
  return {static_cast<float>(T(static_cast<uint16_t>(packed), T::from_bits())),
          static_cast<float>(T(static_cast<uint16_t>(packed >> 16), T::from_bits()))};
}

}  // namespace reidops

#ifndef __CUDACC__
#include "host_mma.h"
#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define REIDOPS_TENSOR_ASM(...) __trap()  // the launchers leave these kernels alone on such a device
#else
#define REIDOPS_TENSOR_ASM(...) asm volatile(__VA_ARGS__)
#endif

namespace reidops {

// Four 8 x 8 matrices in shared memory: lane l gives the address of row l % 8 of matrix l / 8, a multiple of 16, and
// has (g, 2q ..) of matrix i in to[i]. Eight rows are read at a time, without a conflict if they lie in different
// banks.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&to)[4], const void* row) {
  REIDOPS_TENSOR_ASM("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]),
                     "=r"(to[2]), "=r"(to[3]) : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))) : "memory");
}

// The same of the transposed matrices: (2q .., g) of what lies in memory.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&to)[4], const void* row) {
  REIDOPS_TENSOR_ASM("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]),
                     "=r"(to[1]), "=r"(to[2]),
                     "=r"(to[3]) : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))) : "memory");
}

// sum += a b, in float32.
template <typename T>
__device__ __forceinline__ void mma_16816(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (std::is_same_v<T, Half>) {
    REIDOPS_TENSOR_ASM(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
        " {%0, %1, %2, %3};" : "+f"(sum[0]),
        "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    REIDOPS_TENSOR_ASM(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
        " {%0, %1, %2, %3};" : "+f"(sum[0]),
        "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two floats, rounded to the nearest.
template <typename T>
__device__ __forceinline__ unsigned pack(float low, float high) {
  unsigned packed = 0;
  if constexpr (std::is_same_v<T, Half>) {
    REIDOPS_TENSOR_ASM("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    REIDOPS_TENSOR_ASM("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}

}  // namespace reidops

#endif
