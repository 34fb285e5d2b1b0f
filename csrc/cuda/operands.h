// Features made into the operands of the distances' matrix products: around their middle, in the format of the product,
// with the squared norms of what is multiplied, so that |x|^2 + |y|^2 - 2 x . y is a distance of one and the same points.
//
// One read of the features and one write of the operand: 8 bytes a value in TF32, 6 in bfloat16, 16 when split. Against
// the product's 2 N FLOPs a value that is nothing from N of a few thousand on.
#pragma once

#include "../core/centre.h"
#include "../core/rounding.h"
#include "batch.cuh"
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
//
// 3,072 rows of 2,048 channels are 25 MB in and 25 MB out in TF32, 17 us at 3 TB/s. They are 23 warps a multiprocessor;
// with 2 KB of each on their way, 46 KB, the memory bounds it (20 KB are under way at 3 TB/s and 800 ns). Split, 75 MB go
// out, 33 us in all, and 1 KB of each is enough.
template <typename T, Format kFormat, bool kLeft>
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(const T* __restrict__ x, const T* __restrict__ centre, int64_t rows, int64_t depth, int64_t padded,
                void* __restrict__ out, T* __restrict__ norms) {
  constexpr int kWarps = kPackThreads / kWarp, kBatches = kFormat == Format::kSplit ? 1 : 2;
  const int lane = threadIdx.x % kWarp;
  const bool wide = at_16_bytes(x) && depth % kGroup<T> == 0, wide_out = padded % kGroup<T> == 0;
  for (int64_t row = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; row < rows;
       row += gridDim.x * int64_t(kWarps)) {
    T sum = T(0);
    for (int64_t first = 0; first < padded; first += kBatches * kBatchColumns) {
      T values[kBatches][kBatch];
#pragma unroll
      for (int b = 0; b < kBatches; ++b) {
        load_batch<kGroup<T>>(x + row * depth, 1, wide, first + b * kBatchColumns, depth, T(0), values[b]);
      }
#pragma unroll
      for (int b = 0; b < kBatches; ++b) {
        const int64_t start = first + b * kBatchColumns;
        T middle[kBatch];
        load_batch<kGroup<T>>(centre, 1, true, start, depth, T(0), middle);
#pragma unroll
        for (int u = 0; u < kBatch; ++u) values[b][u] -= middle[u];
        if constexpr (kFormat == Format::kPlain || kFormat == Format::kTf32) {
#pragma unroll
          for (int u = 0; u < kBatch; ++u) {
            if constexpr (kFormat == Format::kTf32) values[b][u] = round_to_tf32(values[b][u]);
          }
          store_batch<kGroup<T>>(static_cast<T*>(out) + row * padded, wide_out, start, padded, values[b]);
        } else if constexpr (kFormat == Format::kBfloat16) {
          uint16_t rounded[kBatch];
#pragma unroll
          for (int u = 0; u < kBatch; ++u) {
            rounded[u] = round_to_bfloat16(values[b][u]);
            values[b][u] = bfloat16_to_float(rounded[u]);
          }
          store_batch<kGroup<T>>(static_cast<uint16_t*>(out) + row * padded, wide_out, start, padded, rounded);
        } else {
          uint16_t pieces[3][kBatch];
#pragma unroll
          for (int u = 0; u < kBatch; ++u) {
            uint16_t of_value[3];
            split_bfloat16(values[b][u], of_value);
#pragma unroll
            for (int piece = 0; piece < 3; ++piece) pieces[piece][u] = of_value[piece];
          }
#pragma unroll
          for (int part = 0; part < kSplitTerms; ++part) {
            uint16_t* const to = static_cast<uint16_t*>(out) + (row * kSplitTerms + part) * padded;
            store_batch<kGroup<T>>(to, wide_out, start, padded, pieces[split_piece<kLeft>(part)]);
          }
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) sum += values[b][u] * values[b][u];
      }
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
