// The vector kernels, included once per instruction set with
//   REIDOPS_LEVEL         name of the namespace
//   REIDOPS_VECTOR_BYTES  bytes of a register
//   REIDOPS_INVERSE_ROOT  an estimate of 1 / sqrt of each float of a register, where there is an instruction for it
//   REIDOPS_TILE_ROWS, REIDOPS_TILE_VECTORS  register tile of simd_products.h: rows x vectors accumulators
// No function of the standard library is called here: an inline one compiled with these instructions could replace the
// plain copy that the rest of the program uses on an older processor.

namespace reidops {
namespace REIDOPS_LEVEL {

template <typename T>
struct Simd {
  static constexpr int64_t kLanes = REIDOPS_VECTOR_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(REIDOPS_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <typename T>
bool squared_distances(T* values, int64_t count, T norm, const T* norms, T smallest) {
  int cancelled = 0;
  for (int64_t j = 0; j < count; ++j) {
    const T sum = norm + norms[j];
    T d = sum - T(2) * values[j];
    d = d < T(0) ? T(0) : d;
    cancelled |= !(d >= kCancellation<T> * sum + smallest);
    values[j] = d;
  }
  return cancelled != 0;
}

template <typename T, typename Term>
inline __attribute__((always_inline)) T reduce(int64_t count, Term term) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  Vector sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * kLanes <= count; k += 4 * kLanes) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sums[u] += term.vector(k + u * kLanes);
  }
  for (; k + kLanes <= count; k += kLanes) sums[0] += term.vector(k);
  const Vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  T sum = T(0);
  for (; k < count; ++k) sum += term.scalar(k);
  for (int64_t l = 0; l < kLanes; ++l) sum += all[l];
  return sum;
}

template <typename T>
struct SquaredDifference {
  using Vector = typename Simd<T>::Vector;
  const T *x, *y;
  inline __attribute__((always_inline)) Vector vector(int64_t k) const {
    const Vector d = *reinterpret_cast<const Vector*>(x + k) - *reinterpret_cast<const Vector*>(y + k);
    return d * d;
  }
  inline __attribute__((always_inline)) T scalar(int64_t k) const { return (x[k] - y[k]) * (x[k] - y[k]); }
};

template <typename T>
struct Product {
  using Vector = typename Simd<T>::Vector;
  const T *x, *y;
  inline __attribute__((always_inline)) Vector vector(int64_t k) const {
    return *reinterpret_cast<const Vector*>(x + k) * *reinterpret_cast<const Vector*>(y + k);
  }
  inline __attribute__((always_inline)) T scalar(int64_t k) const { return x[k] * y[k]; }
};

template <typename T>
T pair_squared_distance(const T* x, const T* y, int64_t depth) {
  return reduce<T>(depth, SquaredDifference<T>{x, y});
}

template <typename T>
T dot(const T* x, const T* y, int64_t count) {
  return reduce<T>(count, Product<T>{x, y});
}

// 1 / sqrt(x) to about two units in the last place, for normal x > 0: the instruction's 12 or 14 bits and one step of
// Newton's, 5 operations where a square root and a division keep the divider busy for 40 cycles.
inline __attribute__((always_inline)) typename Simd<float>::Vector inverse_root(typename Simd<float>::Vector x) {
#if defined(REIDOPS_INVERSE_ROOT)
  const typename Simd<float>::Vector y = REIDOPS_INVERSE_ROOT(x);
  return y * (1.5f - 0.5f * x * y * y);
#else
  typename Simd<float>::Vector y;
  for (int64_t l = 0; l < Simd<float>::kLanes; ++l) y[l] = 1.0f / __builtin_sqrtf(x[l]);
  return y;
#endif
}

// tanh(d / 2) of the squared distance: of d^2 / 4 = z, tanh(sqrt(z)) = sqrt(z) p(z) / q(z) = z p(z) / sqrt(z q(z)^2).
// p and q come times 4096, so that z q^2 stays normal where z has digits left.
inline __attribute__((always_inline)) typename Simd<float>::Vector stripe_distance(
    typename Simd<float>::Vector squared) {
  using Vector = typename Simd<float>::Vector;
  const Vector quarter = 0.25f * squared, most = Vector{} + kTanhReach * kTanhReach, least = Vector{} + 1.2e-38f;
  const Vector z = quarter > most ? most : quarter;  // a NaN stays one
  Vector p, q;
  tanh_polynomials<4096>(z, p, q);
  const Vector square = z * q * q;
  return z * p * inverse_root(square < least ? least : square);
}

inline __attribute__((always_inline)) typename Simd<double>::Vector stripe_distance(
    typename Simd<double>::Vector squared) {
  for (int64_t l = 0; l < Simd<double>::kLanes; ++l) squared[l] = tanh_half(__builtin_sqrt(squared[l]));
  return squared;
}

template <typename T>
void stripe_path(const T* squared, int64_t stride, int64_t m, int64_t n, bool aligned, T* __restrict__ total,
                 T* __restrict__ out) {
  using Vector = typename Simd<T>::Vector;
  Vector left = {};
  for (int64_t i = 0; i < m; ++i) {
    const Vector* row = reinterpret_cast<const Vector*>(squared + i * stride);
    if (!aligned) {
      left += stripe_distance(row[i]);
      continue;
    }
    Vector* above = reinterpret_cast<Vector*>(total);
    left = i == 0 ? stripe_distance(row[0]) : above[0] + stripe_distance(row[0]);
    above[0] = left;
    for (int64_t j = 1; j < n; ++j) {
      const Vector up = i == 0 ? left : above[j];
      left = stripe_distance(row[j]) + (up < left ? up : left);
      above[j] = left;
    }
  }
  *reinterpret_cast<Vector*>(out) = left;
}

// A reduction in blocks of independent lanes, so that it is vectorised without reassociating anything but min and max.
template <typename T>
void extrema(const T* values, int64_t count, T* smallest, T* largest) {
  constexpr int64_t kLanes = 2 * Simd<T>::kLanes;
  T low[kLanes], high[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) low[l] = *smallest, high[l] = *largest;
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const T v = values[j + l];
      low[l] = v < low[l] ? v : low[l];
      high[l] = v > high[l] ? v : high[l];
    }
  }
  for (int64_t l = 0; j < count; ++j, ++l) {
    low[l] = values[j] < low[l] ? values[j] : low[l];
    high[l] = values[j] > high[l] ? values[j] : high[l];
  }
  for (int64_t l = 0; l < kLanes; ++l) {
    *smallest = low[l] < *smallest ? low[l] : *smallest;
    *largest = high[l] > *largest ? high[l] : *largest;
  }
}

template <typename T>
void labelled_extrema(const T* values, const int32_t* labels, int32_t label, int64_t count, T* largest_same,
                      T* smallest_other) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  T low[kLanes], high[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) low[l] = *smallest_other, high[l] = *largest_same;
  const auto take = [&](int64_t j, int64_t l) __attribute__((always_inline)) {
    const T v = values[j];
    const bool same = labels[j] == label;
    const T as_same = same ? v : high[l];
    const T as_other = same ? low[l] : v;
    high[l] = as_same > high[l] ? as_same : high[l];
    low[l] = as_other < low[l] ? as_other : low[l];
  };
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) take(j + l, l);
  }
  for (; j < count; ++j) take(j, 0);
  for (int64_t l = 0; l < kLanes; ++l) {
    *smallest_other = low[l] < *smallest_other ? low[l] : *smallest_other;
    *largest_same = high[l] > *largest_same ? high[l] : *largest_same;
  }
}

template <typename T>
void harden(const T* values, const int32_t* labels, int32_t label, int32_t index, int64_t count,
            T* __restrict__ positive, int32_t* __restrict__ positive_index, T* __restrict__ negative,
            int32_t* __restrict__ negative_index) {
  for (int64_t j = 0; j < count; ++j) {
    const T v = values[j];
    const bool same = labels[j] == label;
    const bool farther = same & ((v > positive[j]) | ((v == positive[j]) & (index < positive_index[j])));
    const bool nearer = (!same) & ((v < negative[j]) | ((v == negative[j]) & (index < negative_index[j])));
    positive[j] = farther ? v : positive[j];
    positive_index[j] = farther ? index : positive_index[j];
    negative[j] = nearer ? v : negative[j];
    negative_index[j] = nearer ? index : negative_index[j];
  }
}

template <typename T, bool kEach, bool kLargest>
inline __attribute__((always_inline)) bool scan_as(const T* values, int64_t count, T limit, const T* limits, T* largest,
                                                   T* largest_each) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  const Vector zeros = {}, row_limit = zeros + limit;
  Vector high = zeros + *largest;
  auto hits = zeros < zeros;
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    const Vector v = *reinterpret_cast<const Vector*>(values + j);
    hits |= v <= row_limit;
    if (kEach) hits |= v <= *reinterpret_cast<const Vector*>(limits + j);
    if (kLargest) high = v > high ? v : high;
    if (kLargest && kEach) {
      Vector* each = reinterpret_cast<Vector*>(largest_each + j);
      *each = v > *each ? v : *each;
    }
  }
  bool hit = false;
  for (int64_t l = 0; l < kLanes; ++l) hit |= hits[l] != 0;
  if (kLargest) {
    for (int64_t l = 0; l < kLanes; ++l) *largest = high[l] > *largest ? high[l] : *largest;
  }
  for (; j < count; ++j) {
    const T v = values[j];
    hit |= v <= limit;
    if (kEach) hit |= v <= limits[j];
    if (kLargest) *largest = v > *largest ? v : *largest;
    if (kLargest && kEach) largest_each[j] = v > largest_each[j] ? v : largest_each[j];
  }
  return hit;
}

template <typename T>
bool scan(const T* values, int64_t count, T limit, const T* limits, T* largest, T* largest_each) {
  T unused = T(0);
  if (largest == nullptr) {
    return limits == nullptr ? scan_as<T, false, false>(values, count, limit, limits, &unused, largest_each)
                             : scan_as<T, true, false>(values, count, limit, limits, &unused, largest_each);
  }
  return limits == nullptr ? scan_as<T, false, true>(values, count, limit, limits, largest, largest_each)
                           : scan_as<T, true, true>(values, count, limit, limits, largest, largest_each);
}

template <typename T>
T exponentials(T* values, int64_t count, T shift) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  T sums[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const T e = exp_nonpositive(values[j + l] - shift);
      values[j + l] = e;
      sums[l] += e;
    }
  }
  T sum = T(0);
  for (; j < count; ++j) sum += values[j] = exp_nonpositive(values[j] - shift);
  for (int64_t l = 0; l < kLanes; ++l) sum += sums[l];
  return sum;
}

inline __attribute__((always_inline)) float root(float x) { return __builtin_sqrtf(x); }
inline __attribute__((always_inline)) double root(double x) { return __builtin_sqrt(x); }

#include "simd_attention.h"
#include "simd_pairs.h"
#include "simd_ranking.h"

template <typename T>
const Kernels<T>* table() {
  static constexpr Kernels<T> kTable = {Simd<T>::kLanes,
                                        squared_distances<T>,
                                        pair_squared_distance<T>,
                                        stripe_path<T>,
                                        extrema<T>,
                                        labelled_extrema<T>,
                                        harden<T>,
                                        scan<T>,
                                        exponentials<T>,
                                        dot<T>,
                                        order_keys<T>,
                                        count_below<T>,
                                        count_equal<T>,
                                        count_drawn<T>,
                                        pair_distances<T>,
                                        stripe_costs<T>,
                                        stripe_slopes<T>,
                                        weighted_differences<T>,
                                        softmax_slopes<T>,
                                        few_value_slopes<T>};
  return &kTable;
}

const Kernels<float>* float_kernels() { return table<float>(); }
const Kernels<double>* double_kernels() { return table<double>(); }

}  // namespace REIDOPS_LEVEL
}  // namespace reidops
