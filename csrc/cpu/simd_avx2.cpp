// Vector kernels for x86-64-v3 processors: AVX2 and FMA.
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
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

#include "../core/draw.h"
#include "../core/stripe.h"

#define REIDOPS_LEVEL avx2
#define REIDOPS_VECTOR_BYTES 32
#define REIDOPS_INVERSE_ROOT(x) _mm256_rsqrt_ps(x)
#define REIDOPS_TILE_ROWS 6
#define REIDOPS_TILE_VECTORS 2
#include "simd_kernels.h"
#include "simd_products.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
