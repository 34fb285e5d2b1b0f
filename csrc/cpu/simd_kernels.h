// The vector kernels, included once per instruction set with
//   REIDOPS_LEVEL         name of the namespace
//   REIDOPS_VECTOR_BYTES  bytes of a register
//   REIDOPS_FUSED         1 where a product and a sum round once together
//   REIDOPS_TILE_ROWS, REIDOPS_TILE_VECTORS  register tile of `multiply`: rows x vectors accumulators
// No function of the standard library is called here: an inline one compiled with these instructions could replace the
// plain copy that the rest of the program uses on an older processor.
//
// multiply: 2 * rows * vectors * lanes FLOPs against rows + vectors loads per step of depth. With AVX-512, 8 x 3
// accumulators take 24 of 32 registers and 24 FMAs hide 11 loads; the right-hand block of 3 x 256 x 16 floats (48 KB)
// streams from L2.

namespace reidops {
namespace REIDOPS_LEVEL {

template <typename T>
struct Simd {
  static constexpr int64_t kLanes = REIDOPS_VECTOR_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(REIDOPS_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

constexpr int64_t kRows = REIDOPS_TILE_ROWS;

template <typename T, int kVectors>
inline __attribute__((always_inline)) void multiply_tile(const T* left, const T* right, int64_t panel_size,
                                                         int64_t depth, bool add, T* products, int64_t stride) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  Vector sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector columns[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      columns[v] = *reinterpret_cast<const Vector*>(right + v * panel_size + k * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const T row = left[k * kRows + r];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] += row * columns[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Vector* out = reinterpret_cast<Vector*>(products + r * stride + v * kLanes);
      *out = add ? *out + sums[r][v] : sums[r][v];
    }
  }
}

template <typename T>
void multiply(const T* left, int64_t row_panels, const T* right, int64_t column_panels, int64_t depth, T* products,
              int64_t stride) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  constexpr int kVectors = REIDOPS_TILE_VECTORS;
  const int64_t left_panel = depth * kRows, right_panel = depth * kLanes;
  for (int64_t k = 0; k < depth; k += kDepthBlock) {
    const int64_t block = depth - k < kDepthBlock ? depth - k : kDepthBlock;
    int64_t j = 0;
    for (; j + kVectors <= column_panels; j += kVectors) {
      for (int64_t i = 0; i < row_panels; ++i) {
        multiply_tile<T, kVectors>(left + i * left_panel + k * kRows, right + j * right_panel + k * kLanes, right_panel,
                                   block, k > 0, products + i * kRows * stride + j * kLanes, stride);
      }
    }
    for (; j < column_panels; ++j) {
      for (int64_t i = 0; i < row_panels; ++i) {
        multiply_tile<T, 1>(left + i * left_panel + k * kRows, right + j * right_panel + k * kLanes, right_panel, block,
                            k > 0, products + i * kRows * stride + j * kLanes, stride);
      }
    }
  }
}

// sum + x x, rounded as often as `multiply` rounds: the compiler fuses there, and is told to here.
inline __attribute__((always_inline)) float fused(float x, float sum) {
  return REIDOPS_FUSED ? __builtin_fmaf(x, x, sum) : sum + x * x;
}
inline __attribute__((always_inline)) double fused(double x, double sum) {
  return REIDOPS_FUSED ? __builtin_fma(x, x, sum) : sum + x * x;
}

template <typename T, int64_t kWidth>
inline __attribute__((always_inline)) void squared_norms_of_width(const T* panel, int64_t depth, T* norms) {
  for (int64_t w = 0; w < kWidth; ++w) norms[w] = T(0);
  for (int64_t k = 0; k < depth; k += kDepthBlock) {
    const int64_t end = depth - k < kDepthBlock ? depth : k + kDepthBlock;
    T sums[kWidth] = {};
    for (int64_t p = k; p < end; ++p) {
#pragma GCC unroll 16
      for (int64_t w = 0; w < kWidth; ++w) sums[w] = fused(panel[p * kWidth + w], sums[w]);
    }
    for (int64_t w = 0; w < kWidth; ++w) norms[w] += sums[w];
  }
}

template <typename T>
void squared_norms(const T* panel, int64_t depth, int64_t width, T* norms) {
  if (width == kRows) {
    squared_norms_of_width<T, kRows>(panel, depth, norms);
  } else {
    squared_norms_of_width<T, Simd<T>::kLanes>(panel, depth, norms);
  }
}

template <typename T>
bool squared_distances(T* values, int64_t count, T norm, const T* norms) {
  int cancelled = 0;
  for (int64_t j = 0; j < count; ++j) {
    const T sum = norm + norms[j];
    T d = sum - T(2) * values[j];
    d = d < T(0) ? T(0) : d;
    cancelled |= !(d >= kCancellation<T> * sum);
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

inline __attribute__((always_inline)) float root(float x) { return __builtin_sqrtf(x); }
inline __attribute__((always_inline)) double root(double x) { return __builtin_sqrt(x); }

template <typename T>
void stripe_path(const T* squared, int64_t stride, int64_t m, int64_t n, bool aligned, T* __restrict__ cost,
                 T* __restrict__ total, T* __restrict__ out) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  for (int64_t l = 0; l < kLanes; ++l) out[l] = T(0);
  for (int64_t i = 0; i < m; ++i) {
    const T* row = squared + i * stride;
    if (!aligned) {
      for (int64_t l = 0; l < kLanes; ++l) out[l] += tanh_half(root(row[i * kLanes + l]));
      continue;
    }
    for (int64_t p = 0; p < n * kLanes; ++p) cost[p] = tanh_half(root(row[p]));
    for (int64_t l = 0; l < kLanes; ++l) total[l] = i == 0 ? cost[l] : total[l] + cost[l];
    for (int64_t j = 1; j < n; ++j) {
      T* here = total + j * kLanes;
      for (int64_t l = 0; l < kLanes; ++l) {
        const T left = here[l - kLanes];
        const T up = i == 0 ? left : here[l];
        here[l] = cost[j * kLanes + l] + (up < left ? up : left);
      }
    }
  }
  if (aligned) {
    for (int64_t l = 0; l < kLanes; ++l) out[l] = total[(n - 1) * kLanes + l];
  }
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
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t width = count - j < kLanes ? count - j : kLanes;
    for (int64_t l = 0; l < width; ++l) {
      const T v = values[j + l];
      const bool same = labels[j + l] == label;
      const T as_same = same ? v : high[l];
      const T as_other = same ? low[l] : v;
      high[l] = as_same > high[l] ? as_same : high[l];
      low[l] = as_other < low[l] ? as_other : low[l];
    }
  }
  for (int64_t l = 0; l < kLanes; ++l) {
    *smallest_other = low[l] < *smallest_other ? low[l] : *smallest_other;
    *largest_same = high[l] > *largest_same ? high[l] : *largest_same;
  }
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

#include "simd_pairs.h"
#include "simd_ranking.h"

template <typename T>
const Kernels<T>* table() {
  static constexpr Kernels<T> kTable = {Simd<T>::kLanes,
                                        kRows,
                                        multiply<T>,
                                        squared_norms<T>,
                                        squared_distances<T>,
                                        pair_squared_distance<T>,
                                        stripe_path<T>,
                                        extrema<T>,
                                        labelled_extrema<T>,
                                        exponentials<T>,
                                        dot<T>,
                                        order_keys<T>,
                                        count_below<T>,
                                        count_equal<T>,
                                        count_drawn<T>,
                                        pair_distances<T>,
                                        stripe_costs<T>,
                                        stripe_slopes<T>,
                                        weighted_differences<T>};
  return &kTable;
}

const Kernels<float>* float_kernels() { return table<float>(); }
const Kernels<double>* double_kernels() { return table<double>(); }

}  // namespace REIDOPS_LEVEL
}  // namespace reidops
