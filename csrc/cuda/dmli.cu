// dmli: the local distance of B pairs of images, for training (AlignedReID++, section 3).
//
// For a pair of (m, d) and (n, d) stripes: t = tanh(|x_a - y_b| / 2), then the path over t, or its diagonal. Distances
// come from the differences themselves, 3 m n d FLOPs a pair, exact near 0 where gradients are steepest. Backward
// recomputes t (nothing is saved), follows the path and writes every gradient row once: no atomics.
//
// 8 x 8 stripes of 128 channels in float32, one pair: 8 KB in (16 KB in and out, backward), 16,384 subtractions and as
// many multiply-adds. An H200 reads 20 bytes a cycle and multiprocessor (4.8 TB/s), so 410 cycles a pair; the
// arithmetic is 256 instructions of 128 lanes; shared memory gives 32 values a cycle, and 2 x 2 cells a thread ask for
// 1 value a cell and channel: 256 cycles. Large batches are bound by memory, small ones (a training batch has a pair or
// two for each multiprocessor) by the latency of one load, 16 rounds of four cells and 14 steps of the path.
#include <cuda_pipeline.h>

#include "../core/path.h"
#include "../core/stripe.h"
#include "launch.h"
#include "pairs.cuh"
#include "path.cuh"

namespace reidops {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 8;            // rows of x and rows of y that are staged together
constexpr int kChunk = 128;         // channels that are staged together
constexpr int kPitch = kChunk + 4;  // two rows are 8 banks apart, so that a warp's 4 x 8 values of y lie in 32 banks
constexpr int kChannelLanes = 8;    // threads that share 2 x 2 cells: 16 such squares fill an 8 x 8 tile and the block
constexpr int kStage = 2 * kTile * kPitch;  // elements: rows of x, then rows of y; 8.4 KB in float32

static_assert(kThreads == kChannelLanes * (kTile / 2) * (kTile / 2), "the block covers one tile of cells");

struct Sizes {
  int64_t batch;
  int m, n, d;

  __host__ __device__ int64_t cells() const { return int64_t(m) * n; }
  __host__ __device__ int64_t size_x() const { return int64_t(m) * d; }  // elements of an image
  __host__ __device__ int64_t size_y() const { return int64_t(n) * d; }
};

// ----------------------------------------------------------------------------------------------------------- aligned

// Starts the copy of rows row .. row + 7 and channels channel .. channel + 127 of `from`, (rows, d), to `tile`, (8,
// kPitch), kWidth channels at a time. A row beyond the last is the last once more; channels beyond the last are left
// out.
template <int kWidth, typename T>
__device__ __forceinline__ void stage_rows(const T* from, int rows, int d, int row, int channel, T* tile) {
  constexpr int kRowThreads = kThreads / kTile;
  const int r = threadIdx.x / kRowThreads, c = threadIdx.x % kRowThreads * kWidth;
  from += int64_t(row + r < rows ? row + r : rows - 1) * d + channel + c;
  tile += r * kPitch + c;
#pragma unroll kWidth
  for (int step = 0; step < kChunk; step += kRowThreads * kWidth) {
    if (channel + c + step < d) __pipeline_memcpy_async(tile + step, from + step, kWidth * sizeof(T));
  }
}

// Calls store(a, b, |x_a - y_b|^2) once for each cell, by some thread. x: (m, d), y: (n, d), stages: (1 or 2, kStage);
// 1 is enough for d <= kChunk, and then the last tile's rows are still there afterwards. The first store comes after a
// barrier of the block. kWidth: channels copied at once.
template <int kWidth, typename T, typename Store>
__device__ __forceinline__ void for_each_cell(const T* x, const T* y, const Sizes& s, T* stages, Store store) {
  const int lane = threadIdx.x % kChannelLanes, square = threadIdx.x / kChannelLanes;
  const int row = square / (kTile / 2) * 2, column = square % (kTile / 2) * 2;
  for (int a = 0; a < s.m; a += kTile) {
    for (int b = 0; b < s.n; b += kTile) {
      const auto stage = [&](int channel) {
        T* to = stages + (channel / kChunk % 2) * kStage;
        stage_rows<kWidth>(x, s.m, s.d, a, channel, to);
        stage_rows<kWidth>(y, s.n, s.d, b, channel, to + kTile * kPitch);
      };
      T sum00 = T(0), sum01 = T(0), sum10 = T(0), sum11 = T(0);
      stage(0);
      __pipeline_commit();
      for (int channel = 0; channel < s.d; channel += kChunk) {
        if (channel + kChunk < s.d) stage(channel + kChunk);
        __pipeline_commit();
        __pipeline_wait_prior(1);  // all but the copy just started
        __syncthreads();
        const int count = s.d - channel < kChunk ? s.d - channel : kChunk;
        const T* u = stages + (channel / kChunk % 2) * kStage + row * kPitch;
        const T* v = stages + (channel / kChunk % 2) * kStage + (kTile + column) * kPitch;
#pragma unroll 4
        for (int k = lane; k < count; k += kChannelLanes) {
          const T u0 = u[k], u1 = u[kPitch + k], v0 = v[k], v1 = v[kPitch + k];
          sum00 += (u0 - v0) * (u0 - v0);
          sum01 += (u0 - v1) * (u0 - v1);
          sum10 += (u1 - v0) * (u1 - v0);
          sum11 += (u1 - v1) * (u1 - v1);
        }
        __syncthreads();  // before the next copy is made over this one
      }
      for (int step = kChannelLanes / 2; step > 0; step /= 2) {
        sum00 += __shfl_xor_sync(kAllLanes, sum00, step);
        sum01 += __shfl_xor_sync(kAllLanes, sum01, step);
        sum10 += __shfl_xor_sync(kAllLanes, sum10, step);
        sum11 += __shfl_xor_sync(kAllLanes, sum11, step);
      }
      const int i = a + row + lane / 2, j = b + column + lane % 2;  // lanes 0 .. 3 take a cell each
      const T squared = lane == 0 ? sum00 : lane == 1 ? sum01 : lane == 2 ? sum10 : sum11;
      if (lane < 4 && i < s.m && j < s.n) store(i, j, squared);
    }
  }
}

// x: (batch, m, d), y: (batch, n, d), out: (batch,). Cells: (m, n) in shared memory behind the stages, or in scratch:
// (gridDim, m, n). A block a pair; 40 to 48 registers in float32, so 10 to 12 pairs at once on a multiprocessor, whose
// 80 to 100 KB in flight cover the latency of memory.
template <int kWidth, typename T>
__global__ void __launch_bounds__(kThreads) dmli_kernel(const T* __restrict__ x, const T* __restrict__ y, Sizes s,
                                                        int stages, T* scratch, T* __restrict__ out) {
  T* shared = shared_memory<T>();
  T* cost = scratch == nullptr ? shared + stages * kStage : scratch + blockIdx.x * s.cells();
  for (int64_t pair = blockIdx.x; pair < s.batch; pair += gridDim.x) {
    for_each_cell<kWidth>(x + pair * s.size_x(), y + pair * s.size_y(), s, shared,
                          [&](int a, int b, T squared) { cost[int64_t(a) * s.n + b] = tanh_half(sqrt(squared)); });
    __syncthreads();
    if (threadIdx.x < kWarp) {
      accumulate_path_in_warp(cost, s.m, s.n, threadIdx.x, kWarp);
      if (threadIdx.x == 0) out[pair] = cost[s.cells() - 1];
    }  // the next pair's cells are stored after another barrier
  }
}

// One step of the walk along the path, backwards: the rows and gradients of the current cell, for kWays channels of a
// thread, kThreads apart.
template <typename T, int kWays>
struct Walker {
  const T* rows;           // this thread's first channel of row 0; rows are `pitch` apart
  T* grads;                // the same in the gradient, where they are d apart
  int pitch, d, channels;  // channels: from the first to the last of all
  int current;             // row
  T value[kWays], grad[kWays];

  __device__ __forceinline__ void start(int row) {
    current = row;
#pragma unroll
    for (int w = 0; w < kWays; ++w) {
      grad[w] = T(0);
      value[w] = w * kThreads < channels ? rows[int64_t(row) * pitch + w * kThreads] : T(0);
    }
  }
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int w = 0; w < kWays; ++w) {
      if (w * kThreads < channels) grads[int64_t(current) * d + w * kThreads] = grad[w];
    }
  }
  __device__ __forceinline__ void visit(int row) {
    if (row == current) return;
    finish();
    start(row);
  }
};

// grad: (batch,), x and grad_x: (batch, m, d), y and grad_y: (batch, n, d). Cells: twice (m, n), in shared memory
// behind the stages or in scratch: (gridDim, 2, m, n). A block a pair; the bound of 6 blocks leaves 80 registers a
// thread, which is enough for 4 channels of float64 (64 are used in float32: 8 blocks).
//
// Every thread traces the path for its own channels. The path meets each row of x, and of y, in one run of cells, so a
// row is read once and its gradient, summed in registers, written once. 4 channels a thread keep 4 loads in flight. The
// rows come from shared memory if they are all still there (8 x 8 stripes of 128 channels), else from the L2 cache.
template <int kWidth, typename T>
__global__ void __launch_bounds__(kThreads, 6)
    dmli_backward_kernel(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ y, Sizes s,
                         int stages, T* scratch, T* __restrict__ grad_x, T* __restrict__ grad_y) {
  constexpr int kWays = 4;
  T* shared = shared_memory<T>();
  T* total = scratch == nullptr ? shared + stages * kStage : scratch + blockIdx.x * 2 * s.cells();
  T* slope = total + s.cells();
  const bool staged = s.m <= kTile && s.n <= kTile && s.d <= kChunk;
  for (int64_t pair = blockIdx.x; pair < s.batch; pair += gridDim.x) {
    const T *left = x + pair * s.size_x(), *right = y + pair * s.size_y();
    // cost t, and d t / d |x_a - y_b| / |x_a - y_b|, with 0 for the subgradient at x_a = y_b
    for_each_cell<kWidth>(left, right, s, shared, [&](int a, int b, T squared) {
      const T distance = sqrt(squared), t = tanh_half(distance);
      const int64_t cell = int64_t(a) * s.n + b;
      total[cell] = t;
      slope[cell] = distance > T(0) ? tanh_half_slope(distance) / distance : T(0);
    });
    __syncthreads();
    if (threadIdx.x < kWarp) accumulate_path_in_warp(total, s.m, s.n, threadIdx.x, kWarp);
    __syncthreads();
    const T g = grad[pair];
    for (int k = threadIdx.x; k < s.d; k += kThreads * kWays) {
      Walker<T, kWays> from_x{(staged ? shared : left) + k, grad_x + pair * s.size_x() + k, staged ? kPitch : s.d, s.d,
                              s.d - k};
      Walker<T, kWays> from_y{(staged ? shared + kTile * kPitch : right) + k, grad_y + pair * s.size_y() + k,
                              staged ? kPitch : s.d, s.d, s.d - k};
      from_x.start(s.m - 1);
      from_y.start(s.n - 1);
      trace_path(total, s.m, s.n, [&](int64_t a, int64_t b) {
        from_x.visit(static_cast<int>(a));
        from_y.visit(static_cast<int>(b));
        const T scale = g * slope[a * s.n + b];
#pragma unroll
        for (int w = 0; w < kWays; ++w) {
          const T step = scale * (from_x.value[w] - from_y.value[w]);
          from_x.grad[w] += step;
          from_y.grad[w] -= step;
        }
      });
      from_x.finish();
      from_y.finish();
    }
    __syncthreads();
  }
}

// --------------------------------------------------------------------------------------------------------- unaligned

// x and y: (batch, m, d), out: (batch,). A warp a pair, which reads 2 m d values once and is bound by that.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dmli_diagonal_kernel(const T* __restrict__ x, const T* __restrict__ y, Sizes s, T* __restrict__ out) {
  constexpr int kWarps = kThreads / kWarp;
  for (int64_t pair = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; pair < s.batch;
       pair += gridDim.x * int64_t(kWarps)) {
    T sum = T(0);
    for (int64_t row = pair * s.m; row < (pair + 1) * s.m; ++row) {
      sum += tanh_half(sqrt(squared_distance_in_warp(x + row * s.d, y + row * s.d, s.d)));
    }
    if (threadIdx.x % kWarp == 0) out[pair] = sum;
  }
}

// grad: (batch,), the others (batch, m, d). A warp a pair of stripes, which reads 2 d values twice (the second time
// from a cache) and writes 2 d.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dmli_diagonal_backward_kernel(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ y, Sizes s,
                                  T* __restrict__ grad_x, T* __restrict__ grad_y) {
  constexpr int kWarps = kThreads / kWarp;
  for (int64_t row = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; row < s.batch * s.m;
       row += gridDim.x * int64_t(kWarps)) {
    const T *u = x + row * s.d, *v = y + row * s.d;
    const T distance = sqrt(squared_distance_in_warp(u, v, s.d));
    const T scale = distance > T(0) ? grad[row / s.m] * tanh_half_slope(distance) / distance : T(0);
    for (int k = threadIdx.x % kWarp; k < s.d; k += kWarp) {
      const T step = scale * (u[k] - v[k]);
      grad_x[row * s.d + k] = step;
      grad_y[row * s.d + k] = -step;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- wrappers

Sizes check_pairs(const Tensor& x, const Tensor& y, bool aligned) {
  check_input(x, 3, "x");
  check_input(y, 3, "y");
  check_like(y, x, "y");
  STD_TORCH_CHECK(x.size(0) == y.size(0) && x.size(2) == y.size(2), "x and y should match");
  STD_TORCH_CHECK(x.size(1) >= 1 && y.size(1) >= 1 && x.size(2) >= 1, "x and y should have stripes");
  STD_TORCH_CHECK(aligned || x.size(1) == y.size(1), "x and y should have as many stripes");
  constexpr int64_t kMost = 1 << 30;
  STD_TORCH_CHECK(std::max({x.size(1), y.size(1), x.size(2)}) < kMost,
                  "an image should have fewer stripes and channels");
  return {x.size(0), static_cast<int>(x.size(1)), static_cast<int>(y.size(1)), static_cast<int>(x.size(2))};
}

// Where a block of an aligned kernel keeps its stages and its `cells` elements.
struct Layout {
  bool vector;
  int stages;
  int64_t blocks, shared_bytes, shared_limit, scratch_elements;
};

template <typename T>
Layout make_layout(const Tensor& x, const Tensor& y, const Sizes& s, int64_t cells) {
  Layout layout;
  const auto address = reinterpret_cast<uintptr_t>(data<T>(x)) | reinterpret_cast<uintptr_t>(data<T>(y));
  layout.vector = address % 16 == 0 && s.d * sizeof(T) % 16 == 0;
  layout.stages = s.d > kChunk ? 2 : 1;
  layout.blocks = std::min(s.batch, kMaxBlocks);
  layout.shared_bytes = (layout.stages * kStage + cells) * sizeof(T);
  layout.shared_limit = shared_memory_limit(x);
  layout.scratch_elements = 0;
  if (layout.shared_bytes > layout.shared_limit) {
    layout.shared_bytes = layout.stages * kStage * sizeof(T);
    layout.blocks = scratch_blocks(layout.blocks, cells * sizeof(T));
    layout.scratch_elements = layout.blocks * cells;
  }
  return layout;
}

Tensor dmli(const Tensor& x_in, const Tensor& y_in, bool aligned, bool /*refuse*/) {
  const Sizes s = check_pairs(x_in, y_in, aligned);
  const DeviceGuard guard(x_in.get_device_index());
  Tensor out = new_tensor({s.batch}, x_in.scalar_type(), x_in);
  return with_floating_type(x_in, "x", [&](auto zero) {
    using T = decltype(zero);
    if (s.batch == 0) return out;
    const Tensor x = torch::stable::contiguous(x_in), y = torch::stable::contiguous(y_in);
    const cudaStream_t stream = current_stream(x);
    if (aligned) {
      const Layout layout = make_layout<T>(x, y, s, s.cells());
      const Scratch scratch(layout.scratch_elements, x);
      launch("dmli", layout.vector ? dmli_kernel<16 / sizeof(T), T> : dmli_kernel<1, T>, dim3(layout.blocks), kThreads,
             layout.shared_bytes, layout.shared_limit, stream, data<T>(x), data<T>(y), s, layout.stages,
             scratch.get<T>(), mutable_data<T>(out));
    } else {
      const int64_t blocks = std::min(ceil_div(s.batch, kThreads / kWarp), kMaxBlocks);
      launch("dmli", dmli_diagonal_kernel<T>, dim3(blocks), kThreads, 0, 0, stream, data<T>(x), data<T>(y), s,
             mutable_data<T>(out));
    }
    return out;
  });
}

std::tuple<Tensor, Tensor> dmli_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& y_in, bool aligned) {
  const Sizes s = check_pairs(x_in, y_in, aligned);
  check_input(grad_in, 1, "grad");
  check_like(grad_in, x_in, "grad");
  STD_TORCH_CHECK(grad_in.size(0) == s.batch, "grad should match x");
  const DeviceGuard guard(x_in.get_device_index());
  Tensor grad_x = new_tensor({s.batch, s.m, s.d}, x_in.scalar_type(), x_in),
         grad_y = new_tensor({s.batch, s.n, s.d}, x_in.scalar_type(), x_in);
  return with_floating_type(x_in, "x", [&](auto zero) {
    using T = decltype(zero);
    if (s.batch == 0) return std::make_tuple(grad_x, grad_y);
    const Tensor x = torch::stable::contiguous(x_in), y = torch::stable::contiguous(y_in),
                 grad = torch::stable::contiguous(grad_in);
    const cudaStream_t stream = current_stream(x);
    if (aligned) {
      const Layout layout = make_layout<T>(x, y, s, 2 * s.cells());
      const Scratch scratch(layout.scratch_elements, x);
      launch("dmli_backward", layout.vector ? dmli_backward_kernel<16 / sizeof(T), T> : dmli_backward_kernel<1, T>,
             dim3(layout.blocks), kThreads, layout.shared_bytes, layout.shared_limit, stream, data<T>(grad), data<T>(x),
             data<T>(y), s, layout.stages, scratch.get<T>(), mutable_data<T>(grad_x), mutable_data<T>(grad_y));
    } else {
      const int64_t blocks = std::min(ceil_div(s.batch * s.m, kThreads / kWarp), kMaxBlocks);
      launch("dmli_backward", dmli_diagonal_backward_kernel<T>, dim3(blocks), kThreads, 0, 0, stream, data<T>(grad),
             data<T>(x), data<T>(y), s, mutable_data<T>(grad_x), mutable_data<T>(grad_y));
    }
    return std::make_tuple(grad_x, grad_y);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) {
  m.impl("dmli", TORCH_BOX(&dmli));
  m.impl("dmli_backward", TORCH_BOX(&dmli_backward));
}

}  // namespace reidops
