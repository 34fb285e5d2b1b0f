// Features made into the operands of the distances' matrix products: around their middle, in the format of the product,
// with the squared norms of what is multiplied, so that |x|^2 + |y|^2 - 2 x . y is a distance of one and the same points.
//
// One read of the features and one write of the operand: 8 bytes a value in TF32, 6 in bfloat16, 16 when split. Against
// the product's 2 N FLOPs a value that is nothing from N of a few thousand on.
#pragma once

#include "../core/centre.h"
#include "../core/rounding.h"
#include "gemm.h"

namespace reidops {

// Rows of features: (count, depth), contiguous.
template <typename T>
struct Rows {
  const T* values;
  int64_t count, depth;
  const T* at(int64_t i) const { return values + i * depth; }
};

// --------------------------------------------------------------------------------------------------------- the middle

constexpr int kCentreThreads = 1024;  // 32 channels by 32 rows

// centre: (depth,). A block takes 32 channels; up to 2 x 2,047 sampled rows, read 128 bytes at a time.
template <typename T>
__global__ void __launch_bounds__(kCentreThreads)
    centre_kernel(const T* __restrict__ x, int64_t rows_x, const T* __restrict__ y, int64_t rows_y, int64_t depth,
                  T* __restrict__ centre) {
  __shared__ double sums[kWarp][kWarp + 1];
  __shared__ T peaks[kWarp][kWarp + 1];
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp;
  for (int64_t first = blockIdx.x * int64_t(kWarp); first < depth; first += gridDim.x * int64_t(kWarp)) {
    const int64_t channel = first + lane;
    double sum = 0.0;
    T peak = T(0);
    const auto look_at = [&](const T* rows, int64_t count) {
      const int64_t step = sample_step(count);
#pragma unroll 4
      for (int64_t r = row * step; r < count; r += kWarp * step) {
        const T value = channel < depth ? rows[r * depth + channel] : T(0), size = value < T(0) ? -value : value;
        sum += static_cast<double>(value);
        peak = size > peak ? size : peak;
      }
    };
    look_at(x, rows_x);
    look_at(y, rows_y);
    sums[row][lane] = sum;
    peaks[row][lane] = peak;
    __syncthreads();
    if (row == 0 && channel < depth) {
      for (int r = 1; r < kWarp; ++r) {
        sum += sums[r][lane];
        peak = peaks[r][lane] > peak ? peaks[r][lane] : peak;
      }
      const int64_t step_x = sample_step(rows_x), step_y = sample_step(rows_y);
      const int64_t count = (rows_x + step_x - 1) / step_x + (rows_y + step_y - 1) / step_y;
      centre[channel] = coarse_middle(sum, count, peak);
    }
    __syncthreads();
  }
}

template <typename T>
Tensor coarse_mean(const Rows<T>& x, const Rows<T>& y, const Tensor& like) {
  const Tensor centre = new_tensor({x.depth}, like.scalar_type(), like);
  launch("centre", centre_kernel<T>, dim3(std::min(ceil_div(x.depth, kWarp), kMaxBlocks)), kCentreThreads, 0, 0,
         current_stream(like), x.values, x.count, y.values, y.count, x.depth, mutable_data<T>(centre));
  return centre;
}

// ------------------------------------------------------------------------------------------------------------ packing

constexpr int kPackThreads = 256;

// Which piece of a value stands in each of the six parts of a split row. The products of parts with the same place are
// a3 b1, a2 b2, a1 b3, a2 b1, a1 b2, a1 b1: the small ones come first, and are added up before the large ones.
template <bool kLeft>
__device__ __forceinline__ constexpr int split_piece(int part) {
  constexpr int kPieces[2][kSplitTerms] = {{0, 1, 2, 0, 1, 0}, {2, 1, 0, 1, 0, 0}};
  return kPieces[kLeft][part];
}

// x: (rows, depth), centre: (depth,), out: (rows, parts, padded), filled up with zeros, norms: (rows,). A warp a row.
template <typename T, Format kFormat, bool kLeft>
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(const T* __restrict__ x, const T* __restrict__ centre, int64_t rows, int64_t depth, int64_t padded,
                void* __restrict__ out, T* __restrict__ norms) {
  constexpr int kWarps = kPackThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; row < rows;
       row += gridDim.x * int64_t(kWarps)) {
    T sum = T(0);
#pragma unroll 4
    for (int64_t k = lane; k < padded; k += kWarp) {
      T value = k < depth ? x[row * depth + k] - centre[k] : T(0);
      if constexpr (kFormat == Format::kPlain) {
        static_cast<T*>(out)[row * padded + k] = value;
      } else if constexpr (kFormat == Format::kTf32) {
        value = round_to_tf32(value);
        static_cast<float*>(out)[row * padded + k] = value;
      } else if constexpr (kFormat == Format::kBfloat16) {
        const uint16_t rounded = round_to_bfloat16(value);
        value = bfloat16_to_float(rounded);
        static_cast<uint16_t*>(out)[row * padded + k] = rounded;
      } else {
        uint16_t pieces[3];
        split_bfloat16(value, pieces);
        uint16_t* to = static_cast<uint16_t*>(out) + row * kSplitTerms * padded + k;
#pragma unroll
        for (int part = 0; part < kSplitTerms; ++part) to[part * padded] = pieces[split_piece<kLeft>(part)];
      }
      sum += value * value;
    }
    sum = warp_sum(sum);
    if (lane == 0) norms[row] = sum;
  }
}

// A window of rows as one side of the products; load() moves it. Memory of `spare` rows lies behind the largest window.
template <typename T>
class Operand {
 public:
  Operand(const Rows<T>& rows, const Tensor& centre, Format format, bool left, int64_t capacity, int64_t spare = 0)
      : rows_(rows), centre_(centre), format_(format), left_(left), capacity_(std::min(capacity, rows.count)) {
    padded_ = ceil_div(rows.depth, kAlignment) * kAlignment;
    memory_ = new_tensor({(capacity_ + spare) * row_bytes(rows.depth, format)}, ScalarType::Byte, centre);
    norms_ = new_tensor({rows.count}, centre.scalar_type(), centre);
  }

  // Memory of a row.
  static int64_t row_bytes(int64_t depth, Format format) {
    const int64_t padded = ceil_div(depth, kAlignment) * kAlignment;
    switch (format) {
      case Format::kPlain:
        return padded * 8;
      case Format::kTf32:
        return padded * 4;
      case Format::kBfloat16:
        return padded * 2;
      default:
        return padded * 2 * kSplitTerms;
    }
  }

  void load(int64_t begin, int64_t end) {
    if (begin == begin_ && end == end_) return;
    begin_ = begin;
    end_ = end;
    STD_TORCH_CHECK(end - begin <= capacity_, "more rows than fit");
    if constexpr (sizeof(T) == 8) {
      pack<Format::kPlain>();
    } else if (format_ == Format::kTf32) {
      pack<Format::kTf32>();
    } else if (format_ == Format::kBfloat16) {
      pack<Format::kBfloat16>();
    } else {
      pack<Format::kSplit>();
    }
  }

  int64_t pitch() const { return format_ == Format::kSplit ? padded_ * kSplitTerms : padded_; }  // in elements
  int64_t depth() const { return padded_; }                                                      // of the product
  const void* row(int64_t i) const {
    return static_cast<const unsigned char*>(memory_.const_data_ptr()) + (i - begin_) * row_bytes(rows_.depth, format_);
  }
  const T* norms(int64_t i) const { return data<T>(norms_) + i; }  // holds when the window has moved on
  const Rows<T>& rows() const { return rows_; }
  Format format() const { return format_; }

 private:
  static constexpr int64_t kAlignment = 8;  // channels: cuBLAS's fast kernels want rows of whole 16 bytes

  template <Format kFormat>
  void pack() {
    const int64_t count = end_ - begin_;
    if (count == 0) return;
    const auto kernel = left_ ? pack_kernel<T, kFormat, true> : pack_kernel<T, kFormat, false>;
    const int64_t blocks = std::min(ceil_div(count, kPackThreads / kWarp), kMaxBlocks);
    launch("pack", kernel, dim3(blocks), kPackThreads, 0, 0, current_stream(centre_), rows_.at(begin_),
           data<T>(centre_), count, rows_.depth, padded_, memory_.mutable_data_ptr(), mutable_data<T>(norms_) + begin_);
  }

  Rows<T> rows_;
  Tensor centre_, memory_, norms_;
  Format format_;
  bool left_;
  int64_t capacity_, padded_, begin_ = -1, end_ = -1;
};

// The format that torch's word for the precision of float32 products asks for.
template <typename T>
Format product_format(const std::string& precision) {
  if (sizeof(T) == 8) return Format::kPlain;
  if (precision == "high") return Format::kTf32;
  if (precision == "medium") return Format::kBfloat16;
  STD_TORCH_CHECK(precision == "highest", "precision should be highest, high or medium, got ", precision);
  return Format::kSplit;
}

}  // namespace reidops
