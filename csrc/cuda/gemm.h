// Matrix products of the distance tiles, by cuBLAS with torch's handle, at the precision each call asks for.
//
// The toolkit's cuBLAS headers are not needed: libtorch_cuda brings the library, and its C interface is declared here as
// far as it is used.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include "launch.h"

extern "C" {
struct cublasContext;
int cublasGemmEx(cublasContext* handle, int trans_a, int trans_b, int m, int n, int k, const void* alpha, const void* a,
                 int type_a, int ld_a, const void* b, int type_b, int ld_b, const void* beta, void* c, int type_c,
                 int ld_c, int compute_type, int algorithm);
int cublasGemmStridedBatchedEx(cublasContext* handle, int trans_a, int trans_b, int m, int n, int k, const void* alpha,
                               const void* a, int type_a, int ld_a, long long stride_a, const void* b, int type_b,
                               int ld_b, long long stride_b, const void* beta, void* c, int type_c, int ld_c,
                               long long stride_c, int count, int compute_type, int algorithm);
}

namespace reidops {

// How the operands of a product are stored and multiplied. kSplit is float32 to all its digits, in bfloat16 products.
enum class Format { kPlain, kSplit, kTf32, kBfloat16 };

constexpr int kSplitTerms = 6;  // of the nine products of three pieces each, those above 2^-24

// Tensor cores cut off what does not fit in the sum, step by step, where float32 arithmetic rounds: the terms of full
// size are added up over this many channels at a time, and those sums by rounding.
constexpr int64_t kSplitDepth = 512;

// One product: out, (rows, columns), rows `stride` apart, = or += left (rows, depth) times right (columns, depth)
// transposed; the operands' rows are left_pitch and right_pitch elements apart.
inline void multiply_once(Format format, const void* left, int64_t left_pitch, int64_t rows, const void* right,
                          int64_t right_pitch, int64_t columns, int64_t depth, bool add, void* out, int64_t stride) {
  constexpr int kNormal = 0, kTransposed = 1;             // cublasOperation_t
  constexpr int kFloat = 0, kDouble = 1, kBfloat16 = 14;  // cudaDataType_t: CUDA_R_32F, CUDA_R_64F, CUDA_R_16BF
  constexpr int kIn32F = 68, kInTf32 = 77, kIn64F = 70;   // cublasComputeType_t
  constexpr int kDefaultAlgorithm = -1;
  constexpr int64_t kLargest = std::numeric_limits<int>::max();
  STD_TORCH_CHECK(std::max({left_pitch, rows, right_pitch, columns, depth, stride}) <= kLargest,
                  "a matrix product should have fewer rows, columns and channels");
  void* handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  const bool wide = format == Format::kPlain;
  const int in = wide ? kDouble : format == Format::kTf32 ? kFloat : kBfloat16, to = wide ? kDouble : kFloat;
  const int compute = wide ? kIn64F : format == Format::kTf32 ? kInTf32 : kIn32F;
  const float factors[2] = {1.0f, add ? 1.0f : 0.0f};
  const double wide_factors[2] = {1.0, add ? 1.0 : 0.0};
  const auto alpha = wide ? static_cast<const void*>(&wide_factors[0]) : &factors[0];
  const auto beta = wide ? static_cast<const void*>(&wide_factors[1]) : &factors[1];
  // cuBLAS counts by columns: the transposed result from the transposed operands.
  const int status = cublasGemmEx(static_cast<cublasContext*>(handle), kTransposed, kNormal, static_cast<int>(columns),
                                  static_cast<int>(rows), static_cast<int>(depth), alpha, right, in,
                                  static_cast<int>(right_pitch), left, in, static_cast<int>(left_pitch), beta, out, to,
                                  static_cast<int>(stride), compute, kDefaultAlgorithm);
  STD_TORCH_CHECK(status == 0, "cuBLAS: matrix product of (", rows, ", ", depth, ") and (", columns, ", ", depth,
                  ") failed with status ", status);
}

// The product of packed operands (operands.h), 2 rows columns depth FLOPs, six times as many when split: the five small
// parts of a split product first, then the large one in pieces.
inline void multiply(Format format, const void* left, int64_t left_pitch, int64_t rows, const void* right,
                     int64_t right_pitch, int64_t columns, int64_t depth, void* out, int64_t stride) {
  const auto run = [&](int64_t first, int64_t count, bool add) {
    constexpr int64_t kBytes = 2;  // of a bfloat16
    const auto* from_left = static_cast<const unsigned char*>(left) + first * kBytes;
    const auto* from_right = static_cast<const unsigned char*>(right) + first * kBytes;
    multiply_once(format, from_left, left_pitch, rows, from_right, right_pitch, columns, count, add, out, stride);
  };
  if (format != Format::kSplit) return run(0, depth, false);
  const int64_t small = (kSplitTerms - 1) * depth;
  run(0, small, false);
  for (int64_t k = 0; k < depth; k += kSplitDepth) run(small + k, std::min(kSplitDepth, depth - k), true);
}

// Matrices of a batch, `step` elements from one to the next, rows `pitch` apart; a product takes them turned over, or not.
struct Matrices {
  const void* values;
  ScalarType type;
  int64_t pitch, step;
  bool turned;
};

// Products of `count` pairs of matrices: out, (rows, columns) each, = or += left (rows, depth) times right (depth,
// columns). At the precision torch is set to (torch.set_float32_matmul_precision and its like), as torch.bmm's.
inline void multiply_batch(const Matrices& left, const Matrices& right, int64_t rows, int64_t columns, int64_t depth,
                           int64_t count, bool add, const Matrices& out) {
  constexpr int kNormal = 0, kTransposed = 1, kIn32F = 68, kIn64F = 70, kDefaultAlgorithm = -1;
  const auto type = [](ScalarType t) {  // cudaDataType_t
    return t == ScalarType::Double ? 1 : t == ScalarType::Half ? 2 : t == ScalarType::BFloat16 ? 14 : 0;
  };
  void* handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  const bool wide = left.type == ScalarType::Double;
  const float factors[2] = {1.0f, add ? 1.0f : 0.0f};
  const double wide_factors[2] = {1.0, add ? 1.0 : 0.0};
  const auto factor = [&](int i) { return wide ? static_cast<const void*>(&wide_factors[i]) : &factors[i]; };
  // cuBLAS counts by columns: the transposed result from the transposed operands.
  const int status = cublasGemmStridedBatchedEx(
      static_cast<cublasContext*>(handle), right.turned ? kTransposed : kNormal, left.turned ? kTransposed : kNormal,
      static_cast<int>(columns), static_cast<int>(rows), static_cast<int>(depth), factor(0), right.values,
      type(right.type), static_cast<int>(right.pitch), right.step, left.values, type(left.type),
      static_cast<int>(left.pitch), left.step, factor(1), const_cast<void*>(out.values), type(out.type),
      static_cast<int>(out.pitch), out.step, static_cast<int>(count), wide ? kIn64F : kIn32F, kDefaultAlgorithm);
  STD_TORCH_CHECK(status == 0, "cuBLAS: ", count, " matrix products of (", rows, ", ", depth, ") and (", depth, ", ",
                  columns, ") failed with status ", status);
}

}  // namespace reidops
