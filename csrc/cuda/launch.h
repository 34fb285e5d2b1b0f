// Small helpers of the CUDA operators. Their wrappers follow one order: checks, device guard, empty-input return,
// stream, launch. Nothing here waits for the device, so that every operator can run on any stream and in a CUDA graph.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "../core/tensor.h"

namespace reidops {

using torch::stable::accelerator::DeviceGuard;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kPlainSharedBytes = 48 << 10;         // what every kernel may have; more must be asked for
constexpr int64_t kMaxBlocks = (int64_t(1) << 31) - 1;  // of a grid's x dimension; kernels stride over what is beyond
constexpr int64_t kScratchBytes = 64 << 20;             // wanted limit of the memory that stands in for shared memory

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------------------------------------------------- tensors

inline void check_input(const Tensor& t, int64_t dim, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() && t.dim() == dim, name, " should be a CUDA tensor of ", dim, " dimensions, got ",
                  t.dim());
}

// t belongs to the same call as `like`: same device and, unless a type is given, same dtype.
inline void check_like(const Tensor& t, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(t.get_device_index() == like.get_device_index(), name, " should be on the same device as the others");
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, " should have the same dtype as the others");
}

inline void check_int64(const Tensor& t, int64_t length, const Tensor& like, const char* name) {
  check_input(t, 1, name);
  STD_TORCH_CHECK(t.get_device_index() == like.get_device_index(), name, " should be on the same device as the others");
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long, name, " should be int64");
  STD_TORCH_CHECK(t.size(0) == length, name, " should have ", length, " elements, got ", t.size(0));
}

inline Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType type, const Tensor& like) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), type, std::nullopt,
                              like.device());
}

// Device memory for one launch, of the dtype of `like`; none for 0 elements.
class Scratch {
 public:
  Scratch(int64_t count, const Tensor& like) {
    if (count > 0) memory_ = new_tensor({count}, like.scalar_type(), like);
  }
  template <typename T>
  T* get() const {
    return memory_ ? static_cast<T*>(memory_->mutable_data_ptr()) : nullptr;
  }

 private:
  std::optional<Tensor> memory_;
};

// --------------------------------------------------------------------------------------------------------- launching

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next one who asks would be blamed
  STD_TORCH_CHECK(false, what, ": ", cudaGetErrorString(error));
}

// What each host thread has of streams beside torch's (overlap.h).
struct ThreadStreams {
  cudaStream_t launch = nullptr;               // where launches go while it is set, in place of torch's current stream
  std::unordered_map<int, cudaStream_t> side;  // by device
};

inline ThreadStreams& thread_streams() {
  static std::mutex mutex;
  static std::unordered_map<std::thread::id, ThreadStreams> streams;
  const std::lock_guard<std::mutex> lock(mutex);
  return streams[std::this_thread::get_id()];
}

inline cudaStream_t current_stream(const Tensor& t) {
  if (const cudaStream_t launch = thread_streams().launch; launch != nullptr) return launch;
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Shared memory that a block of this device can have when asked for: 48 KB (5.x) to 227 KB (9.0, 10.0).
inline int64_t shared_memory_limit(const Tensor& t) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, t.get_device_index()),
        "shared memory of the device");
  return bytes;
}

// How many blocks share the scratch memory that stands in for shared memory, each having `bytes` of it.
inline int64_t scratch_blocks(int64_t blocks, int64_t bytes) {
  return std::min(blocks, std::max<int64_t>(1, kScratchBytes / bytes));
}

// Launches kernel(arguments...) and checks that it was launched. The limit of shared memory, where it is raised at all,
// is always raised to `shared_limit`, so that threads that launch the same kernel at once do not disturb one another.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared_bytes,
            int64_t shared_limit, cudaStream_t stream, Arguments... arguments) {
  if (shared_bytes > kPlainSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_limit)),
          name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

// ------------------------------------------------------------------------------------------------------- in a kernel

// The block's dynamic shared memory.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char reidops_shared[];
  return reinterpret_cast<T*>(reidops_shared);
}

// The sum over the warp, the same in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// The largest of the warp's numbers, the same in every lane that has a number: a NaN stays where it is.
template <typename T>
__device__ __forceinline__ T warp_max(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// The sum of the values up to this lane's.
template <typename T>
__device__ __forceinline__ T scan_in_warp(T value) {
  for (int step = 1; step < kWarp; step *= 2) {
    const T other = __shfl_up_sync(kAllLanes, value, step);
    if (static_cast<int>(threadIdx.x % kWarp) >= step) value += other;
  }
  return value;
}

// The lanes below `lane`, of 0 .. 32, among `lanes`.
__device__ __forceinline__ int count_below(unsigned lanes, int lane) {
  return __popc(lanes & static_cast<unsigned>((uint64_t(1) << lane) - 1));
}

}  // namespace reidops
