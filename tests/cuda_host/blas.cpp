// cuBLAS's matrix product by plain loops: column-major, every leading dimension honoured, the sums of tensor cores.
#include <cstdint>
#include <cstring>
#include <vector>

#pragma GCC optimize("O3")
#define UNWATCHED __attribute__((no_sanitize("thread")))  // no kernel, so that races.cpp has nothing to say

namespace {

enum Type { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 14 };  // cudaDataType_t
enum Compute { kIn32F = 68, kInTf32 = 77, kIn64F = 70 };                 // cublasComputeType_t

UNWATCHED float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// An element as the tensor cores see it: TF32 drops the last 13 bits.
UNWATCHED double element(const void* matrix, int type, int compute, int64_t i) {
  if (type == kFloat64) return static_cast<const double*>(matrix)[i];
  if (type == kBfloat16) return from_bits(uint32_t(static_cast<const uint16_t*>(matrix)[i]) << 16);
  if (type == kFloat16) return static_cast<const _Float16*>(matrix)[i];
  uint32_t bits;
  memcpy(&bits, static_cast<const float*>(matrix) + i, sizeof bits);
  return from_bits(compute == kInTf32 ? bits & 0xffffe000u : bits);
}

// Tensor cores add a step's products to the sum at once, and cut off what does not fit in float32.
UNWATCHED double cut_off(double sum) {
  uint64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  bits &= ~((uint64_t(1) << 29) - 1);
  memcpy(&sum, &bits, sizeof sum);
  return sum;
}

// Rounds a sum to the result's type.
UNWATCHED void store(void* matrix, int type, int64_t i, double value) {
  if (type == kFloat64) {
    static_cast<double*>(matrix)[i] = value;
  } else if (type == kFloat32) {
    static_cast<float*>(matrix)[i] = static_cast<float>(value);
  } else if (type == kFloat16) {
    static_cast<_Float16*>(matrix)[i] = static_cast<_Float16>(static_cast<float>(value));
  } else {
    const float narrow = static_cast<float>(value);
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    const uint32_t rounded = narrow != narrow ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    static_cast<uint16_t*>(matrix)[i] = static_cast<uint16_t>(rounded);
  }
}

template <typename T>
UNWATCHED void product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const void* a,
                       int type_a, int64_t ld_a, const void* b, int type_b, int64_t ld_b, T beta, void* c, int type_c,
                       int64_t ld_c, int compute) {
  constexpr int64_t kSums = 8;
  const int64_t padded = (k + kSums - 1) / kSums * kSums;
  std::vector<T> left(m * padded), right(n * padded);  // rows of a, columns of b
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t l = 0; l < k; ++l) {
      left[i * padded + l] = static_cast<T>(element(a, type_a, compute, transpose_a ? l + i * ld_a : i + l * ld_a));
    }
  }
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t l = 0; l < k; ++l) {
      right[j * padded + l] = static_cast<T>(element(b, type_b, compute, transpose_b ? j + l * ld_b : l + j * ld_b));
    }
  }
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < m; ++i) {
      const T *x = &left[i * padded], *y = &right[j * padded];
      double sum = 0;
      for (int64_t l = 0; l < padded; l += kSums) {
        double step = 0;
        for (int64_t s = 0; s < kSums; ++s) step += static_cast<double>(x[l + s]) * static_cast<double>(y[l + s]);
        sum = sizeof(T) == 4 ? cut_off(sum + step) : sum + step;
      }
      const int64_t to = i + j * ld_c;
      const T product = alpha * static_cast<T>(sum);
      store(c, type_c, to, beta == 0 ? product : product + beta * static_cast<T>(element(c, type_c, kIn32F, to)));
    }
  }
}

}  // namespace

extern "C" int cublasGemmStridedBatchedEx(void*, int op_a, int op_b, int m, int n, int k, const void* alpha,
                                          const void* a, int type_a, int ld_a, long long stride_a, const void* b,
                                          int type_b, int ld_b, long long stride_b, const void* beta, void* c,
                                          int type_c, int ld_c, long long stride_c, int count, int compute,
                                          int /*algorithm*/) {
  constexpr int kNotSupported = 15, kInvalidValue = 7;
  const bool wide = compute == kIn64F;
  const auto fits = [&](int type) { return (type == kFloat64) == wide; };
  if (!fits(type_a) || type_a != type_b || !fits(type_c) || (type_c != type_a && type_c != kFloat32))
    return kNotSupported;
  if (!wide && compute != kIn32F && (compute != kInTf32 || type_a != kFloat32)) return kNotSupported;
  if (m < 0 || n < 0 || k < 0 || ld_a < (op_a ? k : m) || ld_b < (op_b ? n : k) || ld_c < m) return kInvalidValue;
  const auto bytes = [](int type) { return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2; };
  for (int64_t i = 0; i < count; ++i) {
    const auto* from_a = static_cast<const char*>(a) + i * stride_a * bytes(type_a);
    const auto* from_b = static_cast<const char*>(b) + i * stride_b * bytes(type_b);
    auto* to = static_cast<char*>(c) + i * stride_c * bytes(type_c);
    if (wide) {
      product(op_a, op_b, m, n, k, *static_cast<const double*>(alpha), from_a, type_a, ld_a, from_b, type_b, ld_b,
              *static_cast<const double*>(beta), to, type_c, ld_c, compute);
    } else {
      product(op_a, op_b, m, n, k, *static_cast<const float*>(alpha), from_a, type_a, ld_a, from_b, type_b, ld_b,
              *static_cast<const float*>(beta), to, type_c, ld_c, compute);
    }
  }
  return 0;
}

// Stricter than cuBLAS, which is several times slower where a row of an operand or of the result (transposed operands,
// columns of c) does not begin and end at 16 bytes.
extern "C" int cublasGemmEx(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                            int type_a, int ld_a, const void* b, int type_b, int ld_b, const void* beta, void* c,
                            int type_c, int ld_c, int compute, int algorithm) {
  constexpr int kArchitectureMismatch = 8;
  const auto whole = [](int type, int64_t elements) {
    return elements * (type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2) % 16 == 0;
  };
  const bool aligned =
      (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c)) % 16 == 0;
  if (!aligned || !whole(type_a, ld_a) || !whole(type_b, ld_b) || !whole(type_a, k) || !whole(type_c, ld_c) ||
      !whole(type_c, m)) {
    return kArchitectureMismatch;
  }
  return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, type_a, ld_a, 0, b, type_b, ld_b, 0, beta, c,
                                    type_c, ld_c, 0, 1, compute, algorithm);
}
