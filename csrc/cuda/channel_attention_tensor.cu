// The passes of channel_attention (see the header) on the tensor cores, for half types and rows of up to 288 columns:
// the feature maps of MuDeep_v2 are 24 x 12 = 288 and 24 x 8 = 192.
//
// A block takes 16 rows i a warp, 128 with all eight, and keeps them in shared memory; tiles of 48 or 64 rows j stream
// past in a ring of copies. Two warps share 32 rows i: each computes the weights of one half of the tile's rows j,
// rounds them to T and leaves them in shared memory; then each adds the weighted rows j to one half of the columns of
// the result, which stays in registers: 32 rows by L / 2 columns in float32, 144 registers a thread at L = 288.
//
// Why two: mma.sync takes its operands from registers, so what limits the tensor cores is how often a fragment is read
// from shared memory, 128 bytes a cycle. For L = 288 and one mma (16 x 8 x 16, 4,096 FLOPs):
//
//   weights, 32 x 32 a warp            4 fragments of 512 bytes and 8 of 256 for 16 mma   256 bytes
//   weights, 32 x 24, beside slopes    4 and 6 for 12                                     299 bytes
//   result, 32 x 144                   2 and 18 for 36                                    156 bytes
//   together                           kOutput, kGradValue 206; kGradQuery, kGradKey      251 bytes
//
// or 1.6 and 2.0 cycles an mma, close to the 1.6 cycles that mma.sync takes at best on an H200 (two thirds of the rate
// of its wgmma). One warp for 16 x 64 weights and 16 x 288 of the result would spare the exchange, but take 2.3 cycles.
//
// 32 x 2048 x 288: a product is 2 B C^2 L = 77 GFLOP, 143,000 mma a multiprocessor. kOutput and kGradValue have two,
// kGradQuery and kGradKey three: 0.26, 0.26, 0.49 and 0.49 ms at 1.75 GHz. That leaves out the 8,192 exponentials of a
// tile, 512 cycles of the special function units beside 3,700 of mma, and what the barriers cost. A block reads 76 KB a
// tile from L2, 20 bytes a cycle of some 25 that a multiprocessor can have. The 512 blocks are 3.9 rounds of 132.
//
// L = 288 takes 238 to 254 registers on 8.0 and 9.0, 138 in kOutput of few values, and on 9.0 190 to 224 kB of shared
// memory: a multiprocessor has one block.
//
// Values of up to 16 numbers: their rows and those of grad are one fragment wide, come along with a tile's rows of query
// or key, and are multiplied for a ninth or less of the work above: 0.15 ms for kOutput, and 0.29 ms each for kGradQuery
// and kGradKey, which adds up grad_value beside.
//
// Accuracy: scores, slopes and results are summed in float32; weights are rounded to T, by 2^-9 (bfloat16) or 2^-12 of
// themselves, and so is the result.
#include <algorithm>
#include <limits>

#include "channel_attention.h"
#include "channel_attention_tiles.cuh"

namespace reidops {
namespace {

constexpr int kMaxWarps = 8;
constexpr int kWarpRows = 16;   // of a block, a warp
constexpr int kPairRows = 32;   // that two warps share
constexpr int kNumbers = 3;     // of a query: maximum, share, delta
constexpr float kSlack = 5.5f;  // how far a score may lie above the reference of its row's exponentials: e^5.5 < 256
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// float16 has no small numbers: weights times this stay below 256 x 128 = 2^15, and have 11 bits down to 2^-21.
template <typename T>
constexpr float kWeightScale = std::is_same_v<T, Half> ? 128.0f : 1.0f;

// Shared memory: rows of T (the block's own, then the ring's tiles), weights, and the float32 numbers of rows. Rows of
// query and key have room for kLength columns, those of value and grad for kValues; where these are few, a slot of the
// ring has both rows of its tile, else those of one kind.
template <Pass kPass, int kLength, int kValues>
struct Plan {
  static constexpr int kTile = by_slopes(kPass) && kLength > 192 ? 48 : 64;
  static constexpr bool kFew = kValues < kLength;
  static constexpr bool kGivesValues = kFew && kPass == Pass::kGradKey;  // adds up grad_value as well
  static constexpr int kOwnPitch = kPitch<kLength> + (by_slopes(kPass) ? kPitch<kValues> : 0);
  static constexpr int kSlot = kTile * (kPitch<kLength> + (kFew ? kPitch<kValues> : 0));
  static constexpr int kSummed = by_slopes(kPass) ? kLength : kValues;  // columns of the result

  static constexpr int64_t shared_bytes(int warps, int slots) {
    const int rows = warps * kWarpRows, queries = by_query(kPass) ? rows : slots * kTile;
    const int64_t halves = rows * kOwnPitch + slots * kSlot + (kGivesValues ? 2 : 1) * rows * kPitch<kTile>;
    return 2 * halves + 4 * kNumbers * queries;
  }
};

// A power of two that keeps share (grad . value - delta) within float16: 2 largest[0] largest[1] is a bound of it, and
// becomes 2^15 at most. Gradients of a loss are often below what float16 can hold, and scaled ones above.
__device__ __forceinline__ float slope_scale(const unsigned* largest, int64_t image) {
  if (largest == nullptr) return 1.0f;
  const float bound = __uint_as_float(largest[2 * image]) * __uint_as_float(largest[2 * image + 1]);
  const int exponent = static_cast<int>(__float_as_uint(bound) >> 23) - 126;  // bound < 2^exponent
  const int power = 14 - exponent < 100 ? 14 - exponent : 100;
  return __uint_as_float(static_cast<unsigned>(power + 127) << 23);
}

// Starts the copy of the numbers of `count` queries from `row` on to `to`, (kNumbers, count), by as many threads.
template <bool kDelta, typename T>
__device__ __forceinline__ void stage_numbers(const PassArguments<T, float>& s, int64_t image, int row, int count,
                                              float* to) {
  const int thread = threadIdx.x;
  if (thread >= count) return;
  const int query = row + thread < s.channels ? row + thread : s.channels - 1;
  __pipeline_memcpy_async(to + thread, s.statistics.maximum(image) + query, sizeof(float));
  __pipeline_memcpy_async(to + count + thread, s.statistics.share(image) + query, sizeof(float));
  if (kDelta) __pipeline_memcpy_async(to + 2 * count + thread, s.delta + image * s.channels + query, sizeof(float));
}

// A query's numbers, the share times `scale`.
struct Query {
  float maximum, share, delta;

  __device__ __forceinline__ void load(const float* from, int pitch, float scale) {
    maximum = from[0];
    share = from[pitch] * scale;
    delta = from[2 * pitch];
  }
};

// The softmax of kOutput, as far as it has come: of each of a lane's four rows the reference of the exponentials, which
// follows the highest score so far, and the sum of the weights, so far of the lane's own columns.
struct Softmax {
  float reference[2][2], sum[2][2];

  // Lets the highest of `scores` in; what was summed in terms of a lower reference is scaled. Both warps of a pair see
  // the same rows, and exchange what they have found. maxima: (2, rows), highest_so_far: (rows,), from the pair's rows
  // on.
  template <int kTileColumns, int kColumns>
  __device__ __forceinline__ void admit(const float (&scores)[2][kTileColumns][4], float (&out)[2][kColumns][4],
                                        int half, int rows, bool first, float* maxima, float* highest_so_far) {
    const Place place;
    float highest[2][2];
    for_each_row([&](int m, int h) {
      float value = kNegativeInfinity;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) value = fmaxf(value, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
      highest[m][h] = combine_in_row(value, [](float a, float b) { return fmaxf(a, b); });
      if (place.q == 0) maxima[half * rows + place.row(m, h)] = highest[m][h];
    });
    __syncthreads();
    bool raised = false;
    for_each_row([&](int m, int h) {
      const int row = place.row(m, h);
      highest[m][h] = fmaxf(highest[m][h], maxima[(1 - half) * rows + row]);
      if (half == 0 && place.q == 0) {
        highest_so_far[row] = first ? highest[m][h] : fmaxf(highest_so_far[row], highest[m][h]);
      }
      raised = raised || highest[m][h] > reference[m][h] + kSlack;
    });
    if (!__any_sync(kAllLanes, raised)) return;
    for_each_row([&](int m, int h) {
      if (!(highest[m][h] > reference[m][h] + kSlack)) return;
      const float factor = __expf(reference[m][h] - highest[m][h]);
      reference[m][h] = highest[m][h];
      sum[m][h] *= factor;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        out[m][n][2 * h] *= factor;
        out[m][n][2 * h + 1] *= factor;
      }
    });
  }
};

// Rows of a pair of warps, 32 x kColumns x 8 of them times `factor`, to rows from `row` on of (channels, columns). Calls
// stored(i, column, what was rounded off each of the two numbers).
template <int kColumns, typename T, typename Stored>
__device__ __forceinline__ void store_rows(const float (&out)[2][kColumns][4], float (&factor)[2][2], int half, int row,
                                           int channels, int columns, T* to, Stored stored) {
  const Place place;
  for_each_row([&](int m, int h) {
    const int i = row + place.row(m, h);
    if (i >= channels) return;
    T* at = to + int64_t(i) * columns;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const int column = half * kColumns * 8 + place.column(n);
      if (column >= columns) continue;
      const float low = out[m][n][2 * h] * factor[m][h], high = out[m][n][2 * h + 1] * factor[m][h];
      const unsigned packed = pack<T>(low, high);
      if (columns % 2 == 0) {
        *reinterpret_cast<unsigned*>(at + column) = packed;
      } else {
        at[column] = static_cast<T>(low);
        if (column + 1 < columns) at[column + 1] = static_cast<T>(high);
      }
      const Pair rounded = unpack<T>(packed);
      stored(i, column, low - rounded.low, high - rounded.high);
    }
  });
}

// A block takes 16 rows i a warp of an image; its ring has `slots` (2 or 3) tiles. aligned, values_aligned: the rows of
// query and key, and of value and grad, lie on multiples of 16 bytes.
template <Pass kPass, int kLength, int kValues, typename T>
__global__ void __launch_bounds__(kMaxWarps* kWarp, 1)
    channel_attention_tensor_kernel(PassArguments<T, float> s, int slots, bool aligned, bool values_aligned) {
  using P = Plan<kPass, kLength, kValues>;
  constexpr bool kSlopes = by_slopes(kPass), kByQuery = by_query(kPass);
  constexpr int kTile = P::kTile, kTileColumns = kTile / 16, kColumns = P::kSummed / 16;  // 8 columns each, of one half
  const int64_t image = blockIdx.z * int64_t(gridDim.y) + blockIdx.y;
  if (image >= s.batch) return;
  const T *other_first = s.other.first + s.first(image), *other_second = s.other.second + s.second(image);
  const Place place;
  const int warp = threadIdx.x / kWarp, half = warp % 2, pair_row = warp / 2 * kPairRows;
  const int rows = blockDim.x / kWarp * kWarpRows, own_row = blockIdx.x * rows;

  T* own = shared_memory<T>();
  T* own_second = own + rows * kPitch<kLength>;
  T* ring = own + rows * P::kOwnPitch;
  T* weights = ring + slots * P::kSlot;
  T* shares = weights + rows * kPitch<kTile>;  // the weights of grad_value, beside those of grad_key
  float* numbers =                             // of queries; kOutput: (3, rows) of its own
      reinterpret_cast<float*>(P::kGivesValues ? shares + rows * kPitch<kTile> : shares);
  clear_columns<kLength>(own, rows, s.length);
  if (kSlopes) clear_columns<kValues>(own_second, rows, s.width);
  if constexpr (P::kFew) {
    for (int slot = 0; slot < slots; ++slot) {
      clear_columns<kLength>(ring + slot * P::kSlot, kTile, s.length);
      clear_columns<kValues>(ring + slot * P::kSlot + kTile * kPitch<kLength>, kTile, s.width);
    }
  } else {  // a slot has rows of one kind after those of the other: what the longer ones left meets zeros
    clear_columns<kLength>(ring, slots * kTile, s.length < s.width ? s.length : s.width);
    __syncthreads();  // and is copied by other threads
  }
  stage_rows<kLength>(s.own.first + s.first(image), own_row, rows, s.channels, s.length, aligned, own);
  if (kSlopes) {
    stage_rows<kValues>(s.own.second + s.second(image), own_row, rows, s.channels, s.width, values_aligned, own_second);
  }
  if (kPass == Pass::kGradQuery) stage_numbers<true>(s, image, own_row, rows, numbers);

  // Two steps a tile: its rows for scores and those for weighted sums, or its rows for slopes and those for both. Few
  // values come along in one step.
  constexpr int kSteps = P::kFew ? 1 : 2;
  const int steps = kSteps * ((s.channels + kTile - 1) / kTile);
  const auto start_copy = [&](int step, int slot) {
    if (step < steps) {
      const bool for_scores = P::kFew || (step % 2 == 1) == kSlopes;
      const int row = step / kSteps * kTile;
      T* to = ring + slot * P::kSlot;
      stage_rows<kLength>(for_scores ? other_first : other_second, row, kTile, s.channels,
                          for_scores ? s.length : s.width, aligned, to);
      if constexpr (P::kFew) {
        stage_rows<kValues>(other_second, row, kTile, s.channels, s.width, values_aligned,
                            to + kTile * kPitch<kLength>);
      }
      if (!kByQuery && for_scores) {
        stage_numbers<kSlopes>(s, image, row, kTile, numbers + slot * kNumbers * kTile);
      }
    }
    __pipeline_commit();
    __syncwarp();  // for the tensor cores' instructions
  };
  for (int step = 0; step < slots - 1; ++step) start_copy(step, step);
  int slot = -1;
  // Waits for the tile of a step and starts the copy of a later one over the tile before, which all have read now.
  const auto advance_to = [&](int step) {
    if (slots == 2) {
      __pipeline_wait_prior(0);
    } else {
      __pipeline_wait_prior(1);
    }
    __syncthreads();
    start_copy(step + slots - 1, slot < 0 ? slots - 1 : slot);
    slot = slot + 1 == slots ? 0 : slot + 1;
    return ring + slot * P::kSlot;
  };

  const float scale = kSlopes ? slope_scale(s.largest, image) : kWeightScale<T>;
  float out[2][kColumns][4] = {}, values_out[2][1][4] = {};
  Softmax softmax{{{kNegativeInfinity, kNegativeInfinity}, {kNegativeInfinity, kNegativeInfinity}}, {}};
  for (int step = 0; step < steps; step += kSteps) {
    const int tile_row = half * (kTile / 2);  // from here on the tile's rows are this warp's
    float scores[2][kTileColumns][4], slopes[2][kTileColumns][4];
    const T* tile = advance_to(step);
    const T* tile_second = tile + kTile * kPitch<kLength>;  // where values are few
    if (kSlopes && !P::kFew) {
      multiply_rows<kLength>(own_second + pair_row * kPitch<kLength>, tile + tile_row * kPitch<kLength>, slopes);
      tile = advance_to(step + 1);
    }
    multiply_rows<kLength>(own + pair_row * kPitch<kLength>, tile + tile_row * kPitch<kLength>, scores);
    if constexpr (kSlopes && P::kFew) {
      multiply_rows<kValues>(own_second + pair_row * kPitch<kValues>, tile_second + tile_row * kPitch<kValues>, slopes);
    }

    const int present = s.channels - step / kSteps * kTile - tile_row;
    if (present < kTile / 2) {
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (place.column(n) + e % 2 >= present) scores[0][n][e] = scores[1][n][e] = kNegativeInfinity;
        }
      }
    }
    if constexpr (kPass == Pass::kOutput) {
      softmax.admit(scores, out, half, rows, step == 0, numbers + pair_row, numbers + 2 * rows + pair_row);
    }

    Query by_row[2][2];
    if constexpr (kPass == Pass::kGradQuery) {
      for_each_row([&](int m, int h) { by_row[m][h].load(numbers + pair_row + place.row(m, h), rows, scale); });
    }
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
      const int column = tile_row + place.column(n);
      Query by_column[2];
      if constexpr (!kByQuery) {
        const float* from = numbers + slot * kNumbers * kTile + column;
        const float share_scale = P::kGivesValues ? kWeightScale<T> : scale;
        by_column[0].load(from, kTile, share_scale);
        by_column[1].load(from + 1, kTile, share_scale);
      }
      for_each_row([&](int m, int h) {
        const int at = (pair_row + place.row(m, h)) * kPitch<kTile> + column;
        float weight[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float score = scores[m][n][2 * h + e];
          if constexpr (kPass == Pass::kOutput) {
            weight[e] = __expf(score - softmax.reference[m][h]) * scale;
          } else {
            const Query& query = kByQuery ? by_row[m][h] : by_column[e];
            weight[e] = __expf(score - query.maximum) * query.share;
          }
        }
        if constexpr (P::kGivesValues) {
          *reinterpret_cast<unsigned*>(shares + at) = pack<T>(weight[0], weight[1]);
        }
        if constexpr (kSlopes) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const Query& query = kByQuery ? by_row[m][h] : by_column[e];
            if constexpr (P::kGivesValues) weight[e] *= scale / kWeightScale<T>;
            weight[e] *= slopes[m][n][2 * h + e] - query.delta;
          }
        }
        const unsigned packed = pack<T>(weight[0], weight[1]);
        *reinterpret_cast<unsigned*>(weights + at) = packed;
        if constexpr (kPass == Pass::kOutput) {
          const Pair rounded = unpack<T>(packed);  // so that the shares of the output sum to 1
          softmax.sum[m][h] += rounded.low + rounded.high;
        }
      });
    }
    if (kSlopes || P::kFew) {
      __syncthreads();
    } else {
      tile = advance_to(step + 1);
    }
    const T* summed = P::kFew && !kSlopes ? tile_second : tile;
    add_weighted_rows<kTile, P::kSummed>(weights + pair_row * kPitch<kTile>, summed + half * (P::kSummed / 2), out);
    if constexpr (P::kGivesValues) {
      add_weighted_rows<kTile, kValues>(shares + pair_row * kPitch<kTile>, tile_second + half * (kValues / 2),
                                        values_out);
    }
  }

  if constexpr (kPass == Pass::kOutput) {  // the sums of whole rows, of both warps; the maxima have been read
    for_each_row([&](int m, int h) {
      const float sum = combine_in_row(softmax.sum[m][h], [](float a, float b) { return a + b; });
      if (place.q == 0) numbers[half * rows + pair_row + place.row(m, h)] = sum;
    });
    __syncthreads();
  }
  float factor[2][2];
  for_each_row([&](int m, int h) {
    const int row = pair_row + place.row(m, h), i = own_row + row;
    factor[m][h] = 1.0f / scale;
    if constexpr (kPass == Pass::kOutput) {
      const float maximum = numbers[2 * rows + row];
      factor[m][h] = 1.0f / (numbers[row] + numbers[rows + row]);
      if (half == 0 && place.q == 0 && i < s.channels) {
        s.statistics.maximum(image)[i] = maximum;
        s.statistics.share(image)[i] = factor[m][h] * scale * expf(maximum - softmax.reference[m][h]);
      }
    }
  });
  const int columns = s.columns(kPass);
  store_rows(out, factor, half, own_row + pair_row, s.channels, columns, s.out + image * s.channels * columns,
             [&](int i, int column, float low, float high) {
               if constexpr (kPass == Pass::kOutput) {
                 *reinterpret_cast<unsigned*>(s.statistics.rest(image, i) + column) = pack<T>(low, high);
               }
             });
  if constexpr (P::kGivesValues) {
    for_each_row([&](int m, int h) { factor[m][h] = 1.0f / kWeightScale<T>; });
    const int width = s.statistics.width;
    store_rows(values_out, factor, half, own_row + pair_row, s.channels, width,
               s.grad_value + image * s.channels * width, [](int, int, float, float) {});
  }
}

// The most warps and then slots that the shared memory of the device has room for and the image needs.
template <Pass kPass, int kLength, int kValues, typename T>
bool launch_pass(const PassArguments<T, float>& arguments, const Tensor& like) {
  const int64_t limit = shared_memory_limit(like);
  const auto are_aligned = [](const T* own, const T* other, int width) {
    return width % 8 == 0 && (reinterpret_cast<uintptr_t>(own) | reinterpret_cast<uintptr_t>(other)) % 16 == 0;
  };
  const Side<T>&own = arguments.own, &other = arguments.other;
  const bool values_aligned = are_aligned(own.second, other.second, arguments.width),
             aligned = are_aligned(own.first, other.first, arguments.length) && (kValues < kLength || values_aligned);
  constexpr int kChoices[][2] = {{8, 3}, {8, 2}, {4, 3}, {4, 2}, {2, 2}};
  for (const auto& choice : kChoices) {
    const int warps = choice[0], slots = choice[1], rows = warps * kWarpRows;
    const int64_t bytes = Plan<kPass, kLength, kValues>::shared_bytes(warps, slots);
    if (bytes > limit || (warps > 2 && arguments.channels <= rows / 2)) continue;
    const dim3 grid = images_grid(ceil_div(arguments.channels, rows), arguments.batch);
    launch("channel_attention", channel_attention_tensor_kernel<kPass, kLength, kValues, T>, grid, warps * kWarp, bytes,
           limit, current_stream(like), arguments, slots, aligned, values_aligned);
    return true;
  }
  return false;
}

template <Pass kPass, typename T>
bool launch_few_values(const PassArguments<T, float>& arguments, const Tensor& like) {
  if (arguments.length <= 128) return launch_pass<kPass, 128, kFewTensorValues>(arguments, like);
  if (arguments.length <= 192) return launch_pass<kPass, 192, kFewTensorValues>(arguments, like);
  return arguments.length <= kTensorLength && launch_pass<kPass, kTensorLength, kFewTensorValues>(arguments, like);
}

template <Pass kPass, typename T>
bool launch_length(const PassArguments<T, float>& arguments, const Tensor& like) {
  if constexpr (kPass != Pass::kGradValue) {
    if (arguments.width <= kFewTensorValues) {
      if (launch_few_values<kPass>(arguments, like)) return true;
      if (kPass == Pass::kGradKey) return false;  // it would not leave grad_value
    }
  }
  const int longest = std::max(arguments.length, arguments.width);
  if (longest <= 128) return launch_pass<kPass, 128, 128>(arguments, like);
  if (longest <= 192) return launch_pass<kPass, 192, 192>(arguments, like);
  return longest <= kTensorLength && launch_pass<kPass, kTensorLength, kTensorLength>(arguments, like);
}

}  // namespace

template <typename T>
bool launch_on_tensor_cores(Pass pass, const PassArguments<T, float>& arguments, const Tensor& like) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, like.get_device_index()),
        "compute capability of the device");
  if (major < 8) return false;
  switch (pass) {
    case Pass::kOutput:
      return launch_length<Pass::kOutput>(arguments, like);
    case Pass::kGradQuery:
      return launch_length<Pass::kGradQuery>(arguments, like);
    case Pass::kGradKey:
      return launch_length<Pass::kGradKey>(arguments, like);
    case Pass::kGradValue:
      return launch_length<Pass::kGradValue>(arguments, like);
  }
  return false;
}

template bool launch_on_tensor_cores(Pass, const PassArguments<Half, float>&, const Tensor&);
template bool launch_on_tensor_cores(Pass, const PassArguments<BFloat16, float>&, const Tensor&);

}  // namespace reidops
