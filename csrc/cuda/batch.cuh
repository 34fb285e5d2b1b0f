// A row read or written by a warp, 256 elements at a time: each lane has 8 on their way, 16 bytes at once.
#pragma once

#include "launch.h"

namespace reidops {

constexpr int kBatch = 8;  // elements of a lane
constexpr int kBatchColumns = kBatch * kWarp;

template <typename T>
constexpr int kGroup = 16 / sizeof(T);  // neighbours that a lane takes together

// Which of a batch's columns is a lane's element u. Ascends with u.
template <int kOfGroup>
__device__ __forceinline__ int batch_column(int lane, int u) {
  return (u / kOfGroup * kWarp + lane) * kOfGroup + u % kOfGroup;
}
// This lane's.
template <int kOfGroup>
__device__ __forceinline__ int batch_column(int u) {
  return batch_column<kOfGroup>(threadIdx.x % kWarp, u);
}

template <typename E>
__device__ __forceinline__ bool at_16_bytes(const E* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// Elements start, ..., start + 255 of `count`, `step` apart, and `gap` for those beyond. wide: step is 1, and whole groups
// can be read at once.
template <int kOfGroup, typename E>
__device__ __forceinline__ void load_batch(const E* from, int64_t step, bool wide, int64_t start, int64_t count, E gap,
                                           E (&to)[kBatch]) {
  struct alignas(kOfGroup * sizeof(E) % 16 == 0 ? 16 : sizeof(E)) Group {
    E elements[kOfGroup];
  };
  const auto take = [&](int g, Group group) {  // by value: one load
#pragma unroll
    for (int e = 0; e < kOfGroup; ++e) to[g * kOfGroup + e] = group.elements[e];
  };
  if (wide && start + kBatchColumns <= count) {
    const Group* groups = reinterpret_cast<const Group*>(from + start) + threadIdx.x % kWarp;
#pragma unroll
    for (int g = 0; g < kBatch / kOfGroup; ++g) take(g, groups[g * kWarp]);
  } else {
#pragma unroll
    for (int g = 0; g < kBatch / kOfGroup; ++g) {
      const int64_t column = start + batch_column<kOfGroup>(g * kOfGroup);
      if (wide && column + kOfGroup <= count) {
        take(g, *reinterpret_cast<const Group*>(from + column));
      } else {
#pragma unroll
        for (int e = 0; e < kOfGroup; ++e) to[g * kOfGroup + e] = column + e < count ? from[(column + e) * step] : gap;
      }
    }
  }
}

// The same way back, elements of a batch that are below `count`.
template <int kOfGroup, typename E>
__device__ __forceinline__ void store_batch(E* to, bool wide, int64_t start, int64_t count, const E (&from)[kBatch]) {
  struct alignas(kOfGroup * sizeof(E)) Group {
    E elements[kOfGroup];
  };
#pragma unroll
  for (int g = 0; g < kBatch / kOfGroup; ++g) {
    const int64_t column = start + batch_column<kOfGroup>(g * kOfGroup);
    if (wide && column + kOfGroup <= count) {
      Group group;
#pragma unroll
      for (int e = 0; e < kOfGroup; ++e) group.elements[e] = from[g * kOfGroup + e];
      *reinterpret_cast<Group*>(to + column) = group;
    } else {
#pragma unroll
      for (int e = 0; e < kOfGroup; ++e) {
        if (column + e < count) to[column + e] = from[g * kOfGroup + e];
      }
    }
  }
}

}  // namespace reidops
