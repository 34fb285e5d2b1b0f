// Vector kernels for every processor: SSE2 on x86-64, NEON on arm64.
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../core/draw.h"
#include "../core/stripe.h"

#include "engine.h"
#include "simd.h"

#define REIDOPS_LEVEL baseline
#define REIDOPS_VECTOR_BYTES 16
#if defined(__aarch64__)
#define REIDOPS_TILE_ROWS 8
#define REIDOPS_TILE_VECTORS 3
#else
#define REIDOPS_INVERSE_ROOT(x) _mm_rsqrt_ps(x)
#define REIDOPS_TILE_ROWS 6
#define REIDOPS_TILE_VECTORS 2
#endif
#include "simd_kernels.h"
#include "simd_products.h"
