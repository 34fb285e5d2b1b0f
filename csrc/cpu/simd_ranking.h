// The vector kernels of rank_metrics, part of simd_kernels.h.
//
// count_below: a comparison and an addition for each key and threshold. AVX-512 compares on one port only, 16 keys a
// cycle: 15,913 distances against 16 thresholds take about 16,000 cycles, 6 us, in which a core reads the 64 KB of the
// row from memory at 11 GB/s. Groups of kGroup thresholds with their counts take 2 kGroup registers beside the keys.

template <typename T>
bool order_keys(const T* values, int64_t count, OrderKey<T>* keys) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  OrderKey<T> has_nan = 0;
  for (int64_t j = 0; j < count; ++j) {
    keys[j] = order_key(values[j]);
    has_nan |= values[j] != values[j];
  }
  for (int64_t j = count; j % kLanes != 0; ++j) keys[j] = kLargestKey<T>;
  return has_nan != 0;
}

template <typename T, int kThresholds>
inline __attribute__((always_inline)) void count_below_group(const OrderKey<T>* keys, int64_t count,
                                                             const OrderKey<T>* thresholds, OrderKey<T>* counts,
                                                             const T* next) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  using Vector = typename Simd<OrderKey<T>>::Vector;
  Vector limits[kThresholds], sums[kThresholds];
  Vector* out = reinterpret_cast<Vector*>(counts);
#pragma GCC unroll 16
  for (int u = 0; u < kThresholds; ++u) limits[u] = thresholds[u] - Vector{}, sums[u] = out[u];
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vector key = *reinterpret_cast<const Vector*>(keys + j);
    __builtin_prefetch(next + j, 0, 2);
#pragma GCC unroll 16
    for (int u = 0; u < kThresholds; ++u) {
      if constexpr (REIDOPS_VECTOR_BYTES == 64) {
        sums[u] = key < limits[u] ? sums[u] + 1 : sums[u];  // an addition under a mask
      } else {
        sums[u] -= key < limits[u];  // true is -1
      }
    }
  }
#pragma GCC unroll 16
  for (int u = 0; u < kThresholds; ++u) out[u] = sums[u];
}

template <typename T>
void count_below(const OrderKey<T>* keys, int64_t count, const OrderKey<T>* thresholds, int64_t thresholds_count,
                 OrderKey<T>* counts, const T* next) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  constexpr int kGroup = REIDOPS_VECTOR_BYTES == 64 ? 8 : 4;
  int64_t i = 0;
  for (; i + kGroup <= thresholds_count; i += kGroup)
    count_below_group<T, kGroup>(keys, count, thresholds + i, counts + i * kLanes, next);
  if (kGroup > 4 && i + 4 <= thresholds_count) {
    count_below_group<T, 4>(keys, count, thresholds + i, counts + i * kLanes, next);
    i += 4;
  }
  if (i + 2 <= thresholds_count) {
    count_below_group<T, 2>(keys, count, thresholds + i, counts + i * kLanes, next);
    i += 2;
  }
  if (i < thresholds_count) count_below_group<T, 1>(keys, count, thresholds + i, counts + i * kLanes, next);
}

template <typename T>
int64_t count_equal(const OrderKey<T>* keys, int64_t count, OrderKey<T> key) {
  int64_t equal = 0;
  for (int64_t j = 0; j < count; ++j) equal += keys[j] == key;
  return equal;
}

template <typename T>
DrawnImages count_drawn(uint64_t hash, const int64_t* identities, const int64_t* first, int64_t count,
                        const OrderKey<T>* keys, OrderKey<T> key) {
  int64_t nearer = 0, equal = 0;
  for (int64_t s = 0; s < count; ++s) {
    const OrderKey<T> drawn = keys[first[s] + draw_of(hash, identities[s], first[s + 1] - first[s])];
    nearer += drawn < key;
    equal += drawn == key;
  }
  return {nearer, equal};
}
