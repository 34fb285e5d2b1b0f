// Vector kernels for x86-64-v4 processors: AVX-512 F, BW, DQ, VL.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine.h"
#include "simd.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // said of intrinsics that leave a register undefined
#endif

#include "../core/draw.h"
#include "../core/stripe.h"

#define REIDOPS_LEVEL avx512
#define REIDOPS_VECTOR_BYTES 64
#define REIDOPS_INVERSE_ROOT(x) _mm512_rsqrt14_ps(x)
#define REIDOPS_TILE_ROWS 8
#define REIDOPS_TILE_VECTORS 3
#include "simd_kernels.h"
#include "simd_products.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
