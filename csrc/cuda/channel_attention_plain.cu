// The passes of channel_attention (see the header) on plain arithmetic: float32 and float64, and half types where the
// tensor cores do not take them.
#include <cmath>
#include <limits>
#include <type_traits>

#include "channel_attention.h"
#include "mma.cuh"

namespace reidops {
namespace {

constexpr int kSide = 16;  // a block is 16 x 16 threads
constexpr int kThreads = kSide * kSide;

// A block computes a tile of kTile rows i by kTile rows j of weights, kVector x kVector of them a thread, from chunks
// of kChunk columns, and then adds the weighted rows j to its kParts x kTile columns of the result, which stay in
// registers.
//
// In float32: 64 x 64 tiles, chunks of 32 columns, 320 columns of the result in 80 registers (longer rows are done in
// slices, and the scores again for each). A step of 4 columns reads 4 + 4 vectors from shared memory, 12 cycles of its
// 32 words a cycle for a warp, for 64 multiply-adds, 16 cycles of the multiprocessor's 128: arithmetic bounds it, at 67
// TFLOP/s on an H200 for the 4 N and 16 N FLOPs; 32 x 2048 x 288 has N = 39 GFLOP. The next chunk's values come to
// registers meanwhile. That makes up to 255 registers and 35.8 KB of shared memory: one block a multiprocessor.
//
// Values of up to kFewValues numbers need no tiles: a thread multiplies its own weights with them, or finds its slopes,
// 64 multiply-adds a tile beside the 4,608 of scores at L = 288, and the 16 threads that share rows add up at the end.
template <typename A>
struct Tiling {
  static constexpr int kVector = 16 / sizeof(A);
  static constexpr int kTile = kSide * kVector;
  static constexpr int kChunk = 8 * kVector;
  static constexpr int kPitch = kChunk + kVector;       // eight rows lie in different banks
  static constexpr int kWeightPitch = kTile + kVector;  // vectors stay aligned
  static constexpr int kParts = std::is_same_v<A, float> ? 5 : 9;
  static constexpr int kSlice = kParts * kTile;
  static_assert(2 * kPitch >= kTile, "summed rows fit where two chunks did");
};

template <typename A>
struct __align__(16) Vector {
  A values[16 / sizeof(A)];
};

// Values of kRows rows from `row` on and kColumns columns from `column` on, on their way from global memory to `to`,
// `pitch` apart; zeros beyond the last row and column.
template <typename T, typename A, int kRows, int kColumns>
struct Staged {
  static constexpr int kCount = kRows * kColumns / kThreads;
  A values[kCount];

  __device__ __forceinline__ void load(const T* from, int rows, int columns, int row, int column) {
    constexpr int kStep = kThreads / kColumns;
    row += threadIdx.x / kColumns;
    column += threadIdx.x % kColumns;
    from += int64_t(row) * columns + column;
    if (column >= columns) row = rows;
#pragma unroll
    for (int n = 0; n < kCount; ++n, row += kStep, from += kStep * columns) {
      values[n] = row < rows ? static_cast<A>(*from) : A(0);
    }
  }
  __device__ __forceinline__ void store(A* to, int pitch) const {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int e = n * kThreads + threadIdx.x;
      to[e / kColumns * pitch + e % kColumns] = values[n];
    }
  }
};

// Rows row + 16 n of (channels, width) with width <= kFewValues, filled up with zeros.
template <typename T, typename A>
struct FewRows {
  A values[Tiling<A>::kVector][kFewValues];

  __device__ __forceinline__ void load(const T* from, int row, int channels, int width) {
#pragma unroll
    for (int n = 0; n < Tiling<A>::kVector; ++n) {
      const bool present = row + kSide * n < channels;
#pragma unroll
      for (int v = 0; v < kFewValues; ++v) {
        values[n][v] = present && v < width ? static_cast<A>(from[int64_t(row + kSide * n) * width + v]) : A(0);
      }
    }
  }
};

// products[a][b] = row ty + 16 a of `own` . row tx + 16 b of `other`; rows from own_row and other_row on of (channels,
// length). `stage`: two chunks. A chunk's products are added up before they join the others: less rounding.
template <typename T, typename A>
__device__ __forceinline__ void multiply_rows(const T* own, const T* other, int own_row, int other_row, int channels,
                                              int length, A* stage,
                                              A (&products)[Tiling<A>::kVector][Tiling<A>::kVector]) {
  using S = Tiling<A>;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  A* other_stage = stage + S::kTile * S::kPitch;
  Staged<T, A, S::kTile, S::kChunk> next_own, next_other;
  next_own.load(own, channels, length, own_row, 0);
  next_other.load(other, channels, length, other_row, 0);
#pragma unroll
  for (int a = 0; a < S::kVector; ++a) {
#pragma unroll
    for (int b = 0; b < S::kVector; ++b) products[a][b] = A(0);
  }
  for (int column = 0; column < length; column += S::kChunk) {
    __syncthreads();  // what was staged before has been read
    next_own.store(stage, S::kPitch);
    next_other.store(other_stage, S::kPitch);
    __syncthreads();
    if (column + S::kChunk < length) {
      next_own.load(own, channels, length, own_row, column + S::kChunk);
      next_other.load(other, channels, length, other_row, column + S::kChunk);
    }
    A sums[S::kVector][S::kVector] = {};
#pragma unroll 2
    for (int k = 0; k < S::kChunk; k += S::kVector) {
      Vector<A> u[S::kVector], v[S::kVector];
#pragma unroll
      for (int a = 0; a < S::kVector; ++a) {
        u[a] = *reinterpret_cast<const Vector<A>*>(stage + (ty + kSide * a) * S::kPitch + k);
        v[a] = *reinterpret_cast<const Vector<A>*>(other_stage + (tx + kSide * a) * S::kPitch + k);
      }
#pragma unroll
      for (int a = 0; a < S::kVector; ++a) {
#pragma unroll
        for (int b = 0; b < S::kVector; ++b) {
#pragma unroll
          for (int e = 0; e < S::kVector; ++e) sums[a][b] += u[a].values[e] * v[b].values[e];
        }
      }
    }
#pragma unroll
    for (int a = 0; a < S::kVector; ++a) {
#pragma unroll
      for (int b = 0; b < S::kVector; ++b) products[a][b] += sums[a][b];
    }
  }
}

// out[p][a][e] += the weights of row ty + 16 a times column slice + p kTile + tx kVector + e of rows from other_row on
// of `summed`, (channels, length). weights: (kTile, kWeightPitch); stage: room for kTile x kTile.
template <typename T, typename A>
__device__ __forceinline__ void add_weighted_rows(const T* summed, int other_row, int channels, int length, int slice,
                                                  const A* weights, A* stage,
                                                  A (&out)[Tiling<A>::kParts][Tiling<A>::kVector][Tiling<A>::kVector]) {
  using S = Tiling<A>;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  Staged<T, A, S::kTile, S::kTile> next;
  next.load(summed, channels, length, other_row, slice);
#pragma unroll
  for (int p = 0; p < S::kParts; ++p) {
    const int column = slice + p * S::kTile;
    if (column >= length) break;
    __syncthreads();  // what was staged before has been read, and the weights are written
    next.store(stage, S::kTile);
    __syncthreads();
    if (column + S::kTile < length) next.load(summed, channels, length, other_row, column + S::kTile);
#pragma unroll 2
    for (int j = 0; j < S::kTile; j += S::kVector) {
      Vector<A> w[S::kVector], x[S::kVector];
#pragma unroll
      for (int a = 0; a < S::kVector; ++a) {
        w[a] = *reinterpret_cast<const Vector<A>*>(weights + (ty + kSide * a) * S::kWeightPitch + j);
        x[a] = *reinterpret_cast<const Vector<A>*>(stage + (j + a) * S::kTile + tx * S::kVector);
      }
#pragma unroll
      for (int a = 0; a < S::kVector; ++a) {
#pragma unroll
        for (int e = 0; e < S::kVector; ++e) {
#pragma unroll
          for (int b = 0; b < S::kVector; ++b) out[p][a][e] += w[a].values[b] * x[b].values[e];
        }
      }
    }
  }
}

// The largest value, or the sum, of the 16 threads that share rows.
template <typename A, typename Combine>
__device__ __forceinline__ A combine_in_rows(A value, Combine combine) {
  for (int step = kSide / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// A block takes kTile rows i and kSlice columns of the result of an image; blockIdx.x counts the rows first. kFew: the
// values have up to kFewValues numbers; then kGradKey leaves grad_value too.
template <Pass kPass, bool kFew, typename T, typename A>
__global__ void __launch_bounds__(kThreads) channel_attention_kernel(PassArguments<T, A> s) {
  using S = Tiling<A>;
  __shared__ __align__(16) A stage[2 * S::kTile * S::kPitch];
  __shared__ __align__(16) A weights[S::kTile * S::kWeightPitch];
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  constexpr bool kFewSlopes = kFew && by_slopes(kPass), kFewSums = kFew && kPass != Pass::kGradQuery,
                 kTileSums = !kFew || by_slopes(kPass);
  const int64_t image = blockIdx.z * int64_t(gridDim.y) + blockIdx.y;
  if (image >= s.batch) return;
  const T *own_first = s.own.first + s.first(image), *other_first = s.other.first + s.first(image),
          *own_second = by_slopes(kPass) ? s.own.second + s.second(image) : nullptr,
          *other_second = s.other.second + s.second(image);
  const int row_blocks = (s.channels + S::kTile - 1) / S::kTile;
  const int own_row = blockIdx.x % row_blocks * S::kTile, slice = blockIdx.x / row_blocks * S::kSlice;
  A *maximum = s.statistics.maximum(image), *share = s.statistics.share(image);
  const A* delta = s.delta + image * s.channels;
  const int columns = s.columns(kPass);
  A out[S::kParts][S::kVector][S::kVector] = {};
  A few_sums[S::kVector][kFewValues] = {};
  FewRows<T, A> own_few, other_few;
  if constexpr (kFewSlopes) own_few.load(own_second, own_row + ty, s.channels, s.width);
  A top[S::kVector], sum[S::kVector] = {};  // of the rows so far; forward
#pragma unroll
  for (int a = 0; a < S::kVector; ++a) top[a] = -std::numeric_limits<A>::infinity();

  for (int other_row = 0; other_row < s.channels; other_row += S::kTile) {
    A scores[S::kVector][S::kVector], slopes[S::kVector][S::kVector];
    multiply_rows(own_first, other_first, own_row, other_row, s.channels, s.length, stage, scores);
    if constexpr (kFew) {
      other_few.load(other_second, other_row + tx, s.channels, s.width);
    } else if constexpr (by_slopes(kPass)) {
      multiply_rows(own_second, other_second, own_row, other_row, s.channels, s.width, stage, slopes);
    }
#pragma unroll
    for (int a = 0; a < S::kVector; ++a) {
      if constexpr (kPass == Pass::kOutput) {
        A highest = top[a];
#pragma unroll
        for (int b = 0; b < S::kVector; ++b) {
          if (other_row + tx + kSide * b < s.channels && scores[a][b] > highest) highest = scores[a][b];
        }
        highest = combine_in_rows(highest, [](A x, A y) { return x > y ? x : y; });
        if (highest > top[a]) {
          const A factor = exp(top[a] - highest);
          top[a] = highest;
          sum[a] *= factor;
#pragma unroll
          for (int p = 0; p < S::kParts; ++p) {
#pragma unroll
            for (int e = 0; e < S::kVector; ++e) out[p][a][e] *= factor;
          }
#pragma unroll
          for (int v = 0; v < kFewValues; ++v) few_sums[a][v] *= factor;
        }
      }
#pragma unroll
      for (int b = 0; b < S::kVector; ++b) {
        const int i = own_row + ty + kSide * a, j = other_row + tx + kSide * b, query = by_query(kPass) ? i : j;
        A weight = A(0);
        if (i < s.channels && j < s.channels) {
          if constexpr (kPass == Pass::kOutput) {
            weight = exp(scores[a][b] - top[a]);
            sum[a] += weight;
          } else {
            weight = exp(scores[a][b] - maximum[query]) * share[query];
          }
        }
        if constexpr (kFewSums) {
#pragma unroll
          for (int v = 0; v < kFewValues; ++v) few_sums[a][v] += weight * other_few.values[b][v];
        }
        if constexpr (by_slopes(kPass)) {
          A slope = slopes[a][b];
          if constexpr (kFewSlopes) {
            slope = A(0);
#pragma unroll
            for (int v = 0; v < kFewValues; ++v) slope += own_few.values[a][v] * other_few.values[b][v];
          }
          if (i < s.channels && j < s.channels) weight *= slope - delta[query];
        }
        if constexpr (kTileSums) weights[(ty + kSide * a) * S::kWeightPitch + tx + kSide * b] = weight;
      }
    }
    if constexpr (kTileSums) {
      add_weighted_rows(by_slopes(kPass) ? other_first : other_second, other_row, s.channels,
                        by_slopes(kPass) ? s.length : s.width, slice, weights, stage, out);
    }
  }

#pragma unroll
  for (int a = 0; a < S::kVector; ++a) {
    const int i = own_row + ty + kSide * a;
    A factor = A(1);
    if constexpr (kPass == Pass::kOutput) {
      factor = A(1) / combine_in_rows(sum[a], [](A x, A y) { return x + y; });
      if (slice == 0 && tx == 0 && i < s.channels) {
        maximum[i] = top[a];
        share[i] = factor;
      }
    }
    const auto store = [&](T* to, int width, int column, A value) {
      const T rounded = static_cast<T>(value);
      if (i >= s.channels) return;
      if (column < width) to[(image * s.channels + i) * width + column] = rounded;
      if constexpr (kPass == Pass::kOutput && Statistics<T, A>::kHasRest) {
        if (column < s.statistics.rest_length()) {
          s.statistics.rest(image, i)[column] = static_cast<T>(value - static_cast<A>(rounded));
        }
      }
    };
    if constexpr (kFewSums) {
#pragma unroll
      for (int v = 0; v < kFewValues; ++v) {
        const A sum = combine_in_rows(few_sums[a][v], [](A x, A y) { return x + y; });
        if (slice == 0 && tx == v) store(by_slopes(kPass) ? s.grad_value : s.out, s.statistics.width, v, sum * factor);
      }
    }
    if constexpr (kTileSums) {
#pragma unroll
      for (int p = 0; p < S::kParts; ++p) {
#pragma unroll
        for (int e = 0; e < S::kVector; ++e) {
          store(s.out, columns, slice + p * S::kTile + tx * S::kVector + e, out[p][a][e] * factor);
        }
      }
    }
  }
}

}  // namespace

template <typename T, typename A>
void launch_plain(Pass pass, const PassArguments<T, A>& arguments, const Tensor& like) {
  using S = Tiling<A>;
  const dim3 grid = images_grid(ceil_div(arguments.channels, S::kTile) * ceil_div(arguments.columns(pass), S::kSlice),
                                arguments.batch);
  const auto start = [&](auto kernel, auto few_kernel) {
    launch("channel_attention", arguments.width <= kFewValues ? few_kernel : kernel, grid, kThreads, 0, 0,
           current_stream(like), arguments);
  };
  switch (pass) {
    case Pass::kOutput:
      return start(channel_attention_kernel<Pass::kOutput, false, T, A>,
                   channel_attention_kernel<Pass::kOutput, true, T, A>);
    case Pass::kGradQuery:
      return start(channel_attention_kernel<Pass::kGradQuery, false, T, A>,
                   channel_attention_kernel<Pass::kGradQuery, true, T, A>);
    case Pass::kGradKey:
      return start(channel_attention_kernel<Pass::kGradKey, false, T, A>,
                   channel_attention_kernel<Pass::kGradKey, true, T, A>);
    case Pass::kGradValue:
      return start(channel_attention_kernel<Pass::kGradValue, false, T, A>,
                   channel_attention_kernel<Pass::kGradValue, false, T, A>);
  }
}

template void launch_plain(Pass, const PassArguments<float, float>&, const Tensor&);
template void launch_plain(Pass, const PassArguments<double, double>&, const Tensor&);
template void launch_plain(Pass, const PassArguments<Half, float>&, const Tensor&);
template void launch_plain(Pass, const PassArguments<BFloat16, float>&, const Tensor&);

}  // namespace reidops
