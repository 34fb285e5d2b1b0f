// The vector unit's engine (engine.h), included once per instruction set after simd_kernels.h.
//
// Packed layout: [panel][depth][width].
//
// multiply_tile: 2 * rows * vectors * lanes FLOPs against rows + vectors loads per step of depth. With AVX-512, 8 x 3
// accumulators take 24 of 32 registers and 24 FMAs hide 11 loads. A right-hand block of 3 x 128 x 16 floats (24 KB) stays
// in L1 while the row panels (4 KB each) pass by; the next row panel is fetched ahead into L1, the next columns into L2,
// which is worth a fifth. With 128 rows a right-hand element serves 256 FLOPs, so that memory stands far behind.

namespace reidops {
namespace REIDOPS_LEVEL {

constexpr int64_t kRows = REIDOPS_TILE_ROWS;
constexpr int64_t kDepthBlock = 128;

// next: the row panel that comes after `left`, to be fetched into L1.
template <typename T, int kVectors>
inline __attribute__((always_inline)) void multiply_tile(const T* left, const T* next, const T* right,
                                                         int64_t panel_size, int64_t depth, bool add, T* products,
                                                         int64_t stride) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  Vector sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector columns[kVectors];
    __builtin_prefetch(next + k * kRows, 0, 3);
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

// One block of the depth: kVectors column panels from `right` against all row panels.
template <typename T, int kVectors>
void multiply_columns(const T* left, int64_t row_panels, int64_t left_panel, const T* right, int64_t right_panel,
                      int64_t block, bool add, bool last, T* products, int64_t stride) {
  const int64_t bytes = block * Simd<T>::kLanes * static_cast<int64_t>(sizeof(T));  // of a column panel
  const int64_t share = (bytes / 64 + row_panels - 1) / row_panels;                 // lines to fetch with a row panel
  for (int64_t i = 0; i < row_panels; ++i) {
    for (int v = 0; !last && v < kVectors; ++v) {
      const char* ahead = reinterpret_cast<const char*>(right + (kVectors + v) * right_panel) + i * share * 64;
      for (int64_t line = 0; line < share; ++line) __builtin_prefetch(ahead + line * 64, 0, 2);
    }
    const T* next = left + (i + 1 < row_panels ? i + 1 : 0) * left_panel;
    multiply_tile<T, kVectors>(left + i * left_panel, next, right, right_panel, block, add,
                               products + i * kRows * stride, stride);
  }
}

template <typename T>
void multiply(const unsigned char* left_bytes, int64_t row_panels, const unsigned char* right_bytes,
              int64_t column_panels, int64_t depth, T* products, int64_t stride, bool add) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  constexpr int kVectors = REIDOPS_TILE_VECTORS;
  const int64_t left_panel = depth * kRows, right_panel = depth * kLanes;
  for (int64_t k = 0; k < depth; k += kDepthBlock) {
    const int64_t block = depth - k < kDepthBlock ? depth - k : kDepthBlock;
    const T* left = reinterpret_cast<const T*>(left_bytes) + k * kRows;
    const T* right = reinterpret_cast<const T*>(right_bytes) + k * kLanes;
    int64_t j = 0;
    for (; j + kVectors <= column_panels; j += kVectors) {
      multiply_columns<T, kVectors>(left, row_panels, left_panel, right + j * right_panel, right_panel, block,
                                    add || k > 0, j + 2 * kVectors > column_panels, products + j * kLanes, stride);
    }
    for (; j < column_panels; ++j) {
      multiply_columns<T, 1>(left, row_panels, left_panel, right + j * right_panel, right_panel, block, add || k > 0,
                             j + 2 > column_panels, products + j * kLanes, stride);
    }
  }
}

// Packing turns blocks of kLanes rows by as many steps of depth, which costs log2(lanes) shuffles a vector.
// The lanes i with (i & apart) of a change places with the lanes i - apart of b.
template <typename T, int kApart, int... kLane>
inline __attribute__((always_inline)) void exchange(typename Simd<T>::Vector& a, typename Simd<T>::Vector& b,
                                                    std::integer_sequence<int, kLane...>) {
  constexpr int kWidth = static_cast<int>(Simd<T>::kLanes);
#if defined(__clang__)
  const auto low = __builtin_shufflevector(a, b, ((kLane & kApart) ? kWidth + kLane - kApart : kLane)...);
  const auto high = __builtin_shufflevector(a, b, ((kLane & kApart) ? kWidth + kLane : kLane + kApart)...);
#else
  using Indices = typename Simd<std::conditional_t<sizeof(T) == 4, int32_t, int64_t> >::Vector;
  const auto low = __builtin_shuffle(a, b, Indices{((kLane & kApart) ? kWidth + kLane - kApart : kLane)...});
  const auto high = __builtin_shuffle(a, b, Indices{((kLane & kApart) ? kWidth + kLane : kLane + kApart)...});
#endif
  a = low;
  b = high;
}

template <typename T, int kApart>
inline __attribute__((always_inline)) void transpose_steps(typename Simd<T>::Vector* block) {
  constexpr int kWidth = static_cast<int>(Simd<T>::kLanes);
  if constexpr (kApart < kWidth) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if ((i & kApart) == 0) {
        exchange<T, kApart>(block[i], block[i + kApart], std::make_integer_sequence<int, kWidth>());
      }
    }
    transpose_steps<T, 2 * kApart>(block);
  }
}

// block: kLanes vectors, turned as a square matrix.
template <typename T>
inline __attribute__((always_inline)) void transpose(typename Simd<T>::Vector* block) {
  transpose_steps<T, 1>(block);
}

template <typename T, int64_t kWidth>
void pack(const T* const* rows, int64_t count, int64_t depth, const T* centre, unsigned char* panel) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  T* packed = reinterpret_cast<T*>(panel);
  for (int64_t first = 0; first < kWidth; first += kLanes) {
    const int64_t left = kWidth - first < kLanes ? kWidth - first : kLanes;
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
      const Vector middle = centre ? *reinterpret_cast<const Vector*>(centre + k) : Vector{};
      Vector block[kLanes] = {};
#pragma GCC unroll 16
      for (int64_t w = 0; w < kLanes; ++w) {
        if (w < left && first + w < count) block[w] = *reinterpret_cast<const Vector*>(rows[first + w] + k) - middle;
      }
      transpose<T>(block);
#pragma GCC unroll 16
      for (int64_t s = 0; s < kLanes; ++s) {
        T* to = packed + (k + s) * kWidth + first;
        if (left == kLanes) {
          *reinterpret_cast<Vector*>(to) = block[s];
        } else {
          __builtin_memcpy(to, &block[s], (kWidth % kLanes) * sizeof(T));
        }
      }
    }
    for (; k < depth; ++k) {
      for (int64_t w = first; w < first + left; ++w) {
        packed[k * kWidth + w] = w < count ? rows[w][k] - (centre ? centre[k] : T(0)) : T(0);
      }
    }
  }
}

template <typename T, int64_t kWidth>
void pack_transposed(const T* x, int64_t stride, int64_t count, int64_t depth, unsigned char* panel) {
  T* packed = reinterpret_cast<T*>(panel);
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t w = 0; w < kWidth; ++w) packed[k * kWidth + w] = w < count ? x[k * stride + w] : T(0);
  }
}

template <typename T>
const Engine<T>* engine_table() {
  static constexpr Engine<T> kEngine = {kRows,
                                        1,
                                        kRows * static_cast<int64_t>(sizeof(T)),
                                        Simd<T>::kLanes * static_cast<int64_t>(sizeof(T)),
                                        128,
                                        T(0),
                                        true,
                                        pack<T, kRows>,
                                        pack<T, Simd<T>::kLanes>,
                                        pack_transposed<T, kRows>,
                                        pack_transposed<T, Simd<T>::kLanes>,
                                        multiply<T>};
  return &kEngine;
}

const Engine<float>* float_engine() { return engine_table<float>(); }
const Engine<double>* double_engine() { return engine_table<double>(); }

}  // namespace REIDOPS_LEVEL
}  // namespace reidops
