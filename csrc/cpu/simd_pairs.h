// The vector kernels of pairs of rows taken from their differences, part of simd_kernels.h.
//
// pair_distances: 3 FLOPs an element in a subtraction and a fused addition, against kPairRows + kPairColumns loads for
// kPairRows * kPairColumns pairs. With AVX-512, 4 x 4 pairs take 16 + 5 of 32 registers and 16 cycles a vector of depth;
// with 16 registers, 2 x 4 pairs take 8 + 6. The sums of a row's four pairs are folded together: 8 shuffles in place of
// 16. Every pair is added up in the same order wherever it stands, so that equal rows give equal distances.

constexpr int kPairRows = REIDOPS_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kPairColumns = 4;

// Runs of kRun elements in turn from a and b, out of the lower or upper half of each 16 bytes: an element's source.
template <typename T>
constexpr int interleaved(int i, int run, bool upper) {
  constexpr int kLanes = static_cast<int>(Simd<T>::kLanes), kPart = 16 / sizeof(T);
  const int place = i % kPart, turn = place / run;
  return i - place + (upper ? kPart / 2 : 0) + turn / 2 * run + place % run + turn % 2 * kLanes;
}

template <typename T, int kRun, int... kIndex>
inline __attribute__((always_inline)) typename Simd<T>::Vector fold(typename Simd<T>::Vector a,
                                                                    typename Simd<T>::Vector b,
                                                                    std::integer_sequence<int, kIndex...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, interleaved<T>(kIndex, kRun, false)...) +
         __builtin_shufflevector(a, b, interleaved<T>(kIndex, kRun, true)...);
#else
  using Indices = typename Simd<std::conditional_t<sizeof(T) == 4, int32_t, int64_t> >::Vector;
  return __builtin_shuffle(a, b, Indices{interleaved<T>(kIndex, kRun, false)...}) +
         __builtin_shuffle(a, b, Indices{interleaved<T>(kIndex, kRun, true)...});
#endif
}

// out[c] = sum of the lanes of sums[c]
template <typename T>
inline __attribute__((always_inline)) void sum_lanes(const typename Simd<T>::Vector (&sums)[kPairColumns], T* out) {
  using Vector = typename Simd<T>::Vector;
  constexpr int kLanes = static_cast<int>(Simd<T>::kLanes);
  constexpr auto kIndices = std::make_integer_sequence<int, kLanes>();
  const Vector left = fold<T, 1>(sums[0], sums[1], kIndices), right = fold<T, 1>(sums[2], sums[3], kIndices);
  typedef T Part __attribute__((vector_size(16), aligned(sizeof(T)), may_alias));
  if constexpr (sizeof(T) == 4) {
    const Vector all = fold<T, 2>(left, right, kIndices);
    const Part* parts = reinterpret_cast<const Part*>(&all);
    Part sum = parts[0];
#pragma GCC unroll 4
    for (int p = 1; p < kLanes / 4; ++p) sum += parts[p];
    *reinterpret_cast<Part*>(out) = sum;
  } else {
    const Part *low = reinterpret_cast<const Part*>(&left), *high = reinterpret_cast<const Part*>(&right);
    Part sum_low = low[0], sum_high = high[0];
#pragma GCC unroll 4
    for (int p = 1; p < kLanes / 2; ++p) sum_low += low[p], sum_high += high[p];
    *reinterpret_cast<Part*>(out) = sum_low;
    *reinterpret_cast<Part*>(out + 2) = sum_high;
  }
}

template <typename T>
inline __attribute__((always_inline)) void add_squares(const T* const (&rows)[kPairRows],
                                                       const T* const (&columns)[kPairColumns], int64_t begin,
                                                       int64_t end,
                                                       typename Simd<T>::Vector (&sums)[kPairRows][kPairColumns]) {
  using Vector = typename Simd<T>::Vector;
  for (int64_t k = begin; k < end; k += Simd<T>::kLanes) {
    Vector column[kPairColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kPairColumns; ++c) column[c] = *reinterpret_cast<const Vector*>(columns[c] + k);
#pragma GCC unroll 4
    for (int r = 0; r < kPairRows; ++r) {
      const Vector row = *reinterpret_cast<const Vector*>(rows[r] + k);
#pragma GCC unroll 4
      for (int c = 0; c < kPairColumns; ++c) {
        const Vector difference = row - column[c];
        sums[r][c] += difference * difference;
      }
    }
  }
}

template <typename T>
void pair_distances(const T* x, int64_t m, const T* y, int64_t n, int64_t depth, T* out, int64_t stride) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  const int64_t whole = depth - depth % kLanes;
  for (int64_t i = 0; i < m; i += kPairRows) {
    for (int64_t j = 0; j < n; j += kPairColumns) {
      const T *rows[kPairRows], *columns[kPairColumns];  // the last ones again where there are fewer
      for (int r = 0; r < kPairRows; ++r) rows[r] = x + (i + r < m ? i + r : m - 1) * depth;
      for (int c = 0; c < kPairColumns; ++c) columns[c] = y + (j + c < n ? j + c : n - 1) * depth;
      typename Simd<T>::Vector sums[kPairRows][kPairColumns] = {};
      add_squares<T>(rows, columns, 0, whole, sums);
      if (whole < depth) {
        T rest[kPairRows + kPairColumns][kLanes] = {};
        for (int r = 0; r < kPairRows; ++r) {
          for (int64_t k = whole; k < depth; ++k) rest[r][k - whole] = rows[r][k];
          rows[r] = rest[r];
        }
        for (int c = 0; c < kPairColumns; ++c) {
          for (int64_t k = whole; k < depth; ++k) rest[kPairRows + c][k - whole] = columns[c][k];
          columns[c] = rest[kPairRows + c];
        }
        add_squares<T>(rows, columns, 0, kLanes, sums);
      }
      for (int r = 0; r < kPairRows; ++r) {
        if (i + r >= m) break;
        T* to = out + (i + r) * stride + j;
        if (j + kPairColumns <= n) {
          sum_lanes<T>(sums[r], to);
        } else {
          T few[kPairColumns];
          sum_lanes<T>(sums[r], few);
          for (int64_t c = 0; j + c < n; ++c) to[c] = few[c];
        }
      }
    }
  }
}

template <typename T>
void stripe_costs(T* values, int64_t count, T* __restrict__ costs) {
  for (int64_t j = 0; j < count; ++j) {
    const T distance = root(values[j]);
    values[j] = distance;
    costs[j] = tanh_half(distance);
  }
}

template <typename T>
void stripe_slopes(T* values, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    const T slope = tanh_half_slope(values[j]) / values[j];
    values[j] = values[j] == T(0) ? T(0) : slope;
  }
}

template <typename T>
void weighted_differences(const T* self, const T* const* others, const T* weights, int64_t count, int64_t depth,
                          T* out) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  int64_t k = 0;
  for (; k + 2 * kLanes <= depth; k += 2 * kLanes) {
    const Vector *own = reinterpret_cast<const Vector*>(self + k), here[2] = {own[0], own[1]};
    Vector sums[2] = {};
    for (int64_t c = 0; c < count; ++c) {
      const Vector* other = reinterpret_cast<const Vector*>(others[c] + k);
      sums[0] += weights[c] * (here[0] - other[0]);
      sums[1] += weights[c] * (here[1] - other[1]);
    }
    Vector* to = reinterpret_cast<Vector*>(out + k);
    to[0] = sums[0];
    to[1] = sums[1];
  }
  for (; k < depth; ++k) {
    T sum = T(0);
    for (int64_t c = 0; c < count; ++c) sum += weights[c] * (self[k] - others[c][k]);
    out[k] = sum;
  }
}
