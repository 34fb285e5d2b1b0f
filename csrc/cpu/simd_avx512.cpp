// Vector kernels for x86-64-v4 processors: AVX-512 F, BW, DQ, VL.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "simd.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#include "../core/draw.h"
#include "../core/stripe.h"

#define REIDOPS_LEVEL avx512
#define REIDOPS_VECTOR_BYTES 64
#define REIDOPS_FUSED 1
#define REIDOPS_TILE_ROWS 8
#define REIDOPS_TILE_VECTORS 3
#include "simd_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
