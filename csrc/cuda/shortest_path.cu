// shortest_path: the cheapest monotone path through each (m, n) matrix of a batch, and its gradient.
//
// A matrix belongs to 8, 16 or 32 lanes of a warp, the least that cover its shorter side, and is accumulated in shared
// memory, anti-diagonal by anti-diagonal. For 8 x 8 float32 a matrix brings 256 bytes and 64 additions and minima: it
// is memory that bounds the kernel (256 bytes a matrix forward, 512 backward). A block has 16 such matrices in 4.1 KB
// of shared memory, and 8 blocks at 56 registers a thread have 33 KB in flight. A matrix that does not fit in 48 KB of
// shared memory is accumulated in scratch memory instead.
#include "../core/path.h"
#include "launch.h"
#include "path.cuh"

namespace reidops {
namespace {

constexpr int kMaxThreads = 128;

// The matrices of a batch, and how a block is divided among them.
struct Plan {
  int64_t batch;
  int m, n;
  int lanes;      // of a matrix
  int64_t pitch;  // from one matrix to the next in shared or scratch memory: odd sizes spread them over the banks
};

template <typename T>
__device__ __forceinline__ T* load_and_accumulate(const T* cost, const Plan& plan, int64_t b, T* scratch) {
  const int lane = threadIdx.x % plan.lanes, group = threadIdx.x / plan.lanes;
  const int64_t cells = int64_t(plan.m) * plan.n, groups = blockDim.x / plan.lanes;
  T* total =
      (scratch == nullptr ? shared_memory<T>() : scratch + blockIdx.x * groups * plan.pitch) + group * plan.pitch;
  for (int64_t cell = lane; cell < cells; cell += plan.lanes) total[cell] = cost[b * cells + cell];
  accumulate_path_in_warp(total, plan.m, plan.n, lane, plan.lanes);
  return total;
}

// cost: (batch, m, n), out: (batch,), scratch: (gridDim, matrices of a block, pitch) or null.
// A group without a matrix, at the end, does the last one again and keeps the result to itself.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads, 8)
    shortest_path_kernel(const T* __restrict__ cost, Plan plan, T* scratch, T* __restrict__ out) {
  const int64_t groups = blockDim.x / plan.lanes, group = threadIdx.x / plan.lanes;
  for (int64_t first = blockIdx.x * groups; first < plan.batch; first += gridDim.x * groups) {
    const int64_t b = first + group < plan.batch ? first + group : plan.batch - 1;
    const T* total = load_and_accumulate(cost, plan, b, scratch);
    if (b == first + group && threadIdx.x % plan.lanes == 0) out[b] = total[int64_t(plan.m) * plan.n - 1];
    __syncwarp();  // before the next matrix is loaded over this one
  }
}

// grad: (batch,), cost and out: (batch, m, n), scratch as above. The path's cells get grad, the others 0.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads, 8)
    shortest_path_backward_kernel(const T* __restrict__ grad, const T* __restrict__ cost, Plan plan, T* scratch,
                                  T* __restrict__ out) {
  const int64_t groups = blockDim.x / plan.lanes, group = threadIdx.x / plan.lanes;
  const int lane = threadIdx.x % plan.lanes;
  const int64_t cells = int64_t(plan.m) * plan.n;
  for (int64_t first = blockIdx.x * groups; first < plan.batch; first += gridDim.x * groups) {
    const int64_t b = first + group < plan.batch ? first + group : plan.batch - 1;
    const bool mine = b == first + group;
    const T* total = load_and_accumulate(cost, plan, b, scratch);
    T* to = out + b * cells;
    for (int64_t cell = lane; mine && cell < cells; cell += plan.lanes) to[cell] = T(0);
    __syncwarp();  // the zeros come before the path
    if (mine && lane == 0) {
      const T g = grad[b];
      trace_path(total, plan.m, plan.n, [&](int64_t i, int64_t j) { to[i * plan.n + j] = g; });
    }
    __syncwarp();
  }
}

// cost: (m, n), total: (m, n) scratch, out: (m + n - 1, 2). One warp; a picture is drawn of it, not a batch trained.
template <typename T>
__global__ void __launch_bounds__(kWarp)
    shortest_path_indices_kernel(const T* __restrict__ cost, int m, int n, T* total, int64_t* __restrict__ out) {
  for (int64_t cell = threadIdx.x; cell < int64_t(m) * n; cell += kWarp) total[cell] = cost[cell];
  accumulate_path_in_warp(total, m, n, threadIdx.x, kWarp);
  if (threadIdx.x == 0) {
    int64_t* to = out + 2 * (int64_t(m) + n - 1);
    trace_path(total, m, n, [&](int64_t i, int64_t j) {
      *--to = j;
      *--to = i;
    });
  }
}

// The sizes of a launch: `threads` and `blocks`, and where the matrices are accumulated.
struct Layout {
  Plan plan;
  int threads;
  int64_t blocks, shared_bytes, scratch_elements;
};

Layout make_layout(int64_t batch, int64_t m, int64_t n, int64_t element_bytes) {
  const int64_t pitch = m * n + 1, short_side = std::min(m, n);
  const auto bytes = [&](int threads, int lanes) { return threads / lanes * pitch * element_bytes; };
  int lanes = short_side <= 8 ? 8 : short_side <= 16 ? 16 : kWarp, threads = kMaxThreads;
  while (threads > kWarp && bytes(threads, lanes) > kPlainSharedBytes) threads /= 2;
  while (lanes < kWarp && bytes(threads, lanes) > kPlainSharedBytes) lanes *= 2;
  const int64_t blocks = std::min(ceil_div(batch, threads / lanes), kMaxBlocks), size = bytes(threads, lanes);
  const Plan plan{batch, static_cast<int>(m), static_cast<int>(n), lanes, pitch};
  if (size <= kPlainSharedBytes) return {plan, threads, blocks, size, 0};
  const int64_t fewer = scratch_blocks(blocks, size);
  return {plan, threads, fewer, 0, fewer * size / element_bytes};
}

void check_cells(int64_t m, int64_t n) {
  STD_TORCH_CHECK(m >= 1 && n >= 1, "cost should have at least one cell a matrix");
  STD_TORCH_CHECK(std::max(m, n) < 1 << 30, "cost should have fewer rows and columns");
}

Tensor shortest_path(const Tensor& cost) {
  check_input(cost, 3, "cost");
  const int64_t batch = cost.size(0), m = cost.size(1), n = cost.size(2);
  check_cells(m, n);
  const DeviceGuard guard(cost.get_device_index());
  Tensor out = new_tensor({batch}, cost.scalar_type(), cost);
  return with_floating_type(cost, "cost", [&](auto zero) {
    using T = decltype(zero);
    if (batch == 0) return out;
    const Tensor costs = torch::stable::contiguous(cost);
    const Layout layout = make_layout(batch, m, n, sizeof(T));
    const Scratch scratch(layout.scratch_elements, cost);
    launch("shortest_path", shortest_path_kernel<T>, dim3(layout.blocks), layout.threads, layout.shared_bytes,
           kPlainSharedBytes, current_stream(cost), data<T>(costs), layout.plan, scratch.get<T>(),
           mutable_data<T>(out));
    return out;
  });
}

Tensor shortest_path_backward(const Tensor& grad, const Tensor& cost) {
  check_input(cost, 3, "cost");
  check_input(grad, 1, "grad");
  check_like(grad, cost, "grad");
  const int64_t batch = cost.size(0), m = cost.size(1), n = cost.size(2);
  check_cells(m, n);
  STD_TORCH_CHECK(grad.size(0) == batch, "grad and cost should match");
  const DeviceGuard guard(cost.get_device_index());
  Tensor out = new_tensor({batch, m, n}, cost.scalar_type(), cost);
  return with_floating_type(cost, "cost", [&](auto zero) {
    using T = decltype(zero);
    if (batch == 0) return out;
    const Tensor costs = torch::stable::contiguous(cost), grads = torch::stable::contiguous(grad);
    const Layout layout = make_layout(batch, m, n, sizeof(T));
    const Scratch scratch(layout.scratch_elements, cost);
    launch("shortest_path_backward", shortest_path_backward_kernel<T>, dim3(layout.blocks), layout.threads,
           layout.shared_bytes, kPlainSharedBytes, current_stream(cost), data<T>(grads), data<T>(costs), layout.plan,
           scratch.get<T>(), mutable_data<T>(out));
    return out;
  });
}

Tensor shortest_path_indices(const Tensor& cost) {
  check_input(cost, 2, "cost");
  const int64_t m = cost.size(0), n = cost.size(1);
  check_cells(m, n);
  const DeviceGuard guard(cost.get_device_index());
  Tensor out = new_tensor({m + n - 1, 2}, ScalarType::Long, cost);
  return with_floating_type(cost, "cost", [&](auto zero) {
    using T = decltype(zero);
    const Tensor costs = torch::stable::contiguous(cost);
    const Scratch total(m * n, cost);
    launch("shortest_path_indices", shortest_path_indices_kernel<T>, dim3(1), kWarp, 0, 0, current_stream(cost),
           data<T>(costs), static_cast<int>(m), static_cast<int>(n), total.get<T>(), mutable_data<int64_t>(out));
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) {
  m.impl("shortest_path", TORCH_BOX(&shortest_path));
  m.impl("shortest_path_indices", TORCH_BOX(&shortest_path_indices));
  m.impl("shortest_path_backward", TORCH_BOX(&shortest_path_backward));
}

}  // namespace reidops
