// Marks of the functions that both backends compile.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define REIDOPS_HD __host__ __device__ __forceinline__
#else
#define REIDOPS_HD inline __attribute__((always_inline))
#endif
