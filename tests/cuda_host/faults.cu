// Small kernels with a fault each, and their neighbours without one: what the machine has to find, and has to let pass.
// They work on `data`, (count,) floats in global memory.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace reidops {

__device__ inline float* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char reidops_shared[];
  return reinterpret_cast<float*>(reidops_shared);
}

namespace {

constexpr int kThreads = 64;
constexpr unsigned kAll = ~0u;

// ----------------------------------------------------------------------------------------------------------- barriers

// Each thread reads what its neighbour in the next warp wrote.
template <bool kBarrier>
__global__ void neighbour(float* data) {
  __shared__ float row[kThreads];
  row[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncthreads();
  data[threadIdx.x] = row[(threadIdx.x + 32) % kThreads];
}

// The same within a warp; a vote makes lanes meet, but orders no memory.
template <bool kBarrier>
__global__ void neighbour_lane(float* data) {
  __shared__ float row[kThreads];
  row[threadIdx.x] = threadIdx.x;
  if (kBarrier) {
    __syncwarp();
  } else {
    __any_sync(kAll, 1);
  }
  data[threadIdx.x] = row[threadIdx.x ^ 1];
}

// A second round writes over what slower threads still read.
template <bool kBarrier>
__global__ void two_rounds(float* data) {
  __shared__ float row[kThreads];
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    row[threadIdx.x] = round;
    __syncthreads();
    sum += row[(threadIdx.x + 32) % kThreads];
    if (kBarrier) __syncthreads();
  }
  data[threadIdx.x] = sum;
}

__global__ void half_a_block_at_a_barrier(float* data) {
  if (threadIdx.x < 32) __syncthreads();
  data[threadIdx.x] = 0;
}

__global__ void two_barriers_for_one(float* data) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  data[threadIdx.x] = 0;
}

__global__ void half_a_warp_at_a_shuffle(float* data) {
  float value = threadIdx.x;
  if (threadIdx.x % 32 < 16) value = __shfl_xor_sync(kAll, value, 1);
  data[threadIdx.x] = value;
}

__global__ void half_a_mask(float* data) { data[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1); }

__global__ void two_intrinsics_for_one(float* data) {
  if (threadIdx.x % 32 < 16) {
    data[threadIdx.x] = __any_sync(kAll, 1);
  } else {
    data[threadIdx.x] = __all_sync(kAll, 1);
  }
}

// ------------------------------------------------------------------------------------------------------- shared memory

__global__ void unwritten_shared(float* data) {
  __shared__ float row[kThreads];
  if (threadIdx.x != 5) row[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = row[threadIdx.x] + dynamic_shared()[0];
}

template <bool kBehind>
__global__ void dynamic_shared_write(float* data) {  // 256 bytes
  dynamic_shared()[threadIdx.x + (kBehind ? 1 : 0)] = 1;
  __syncthreads();
  data[threadIdx.x] = 1;
}

__global__ void dynamic_shared_read(float* data) { data[threadIdx.x] = dynamic_shared()[threadIdx.x + 1]; }

// The row of the previous block is not there any more.
__global__ void shared_of_another_block(float* data) {
  __shared__ float row[kThreads];
  if (blockIdx.x == 0) row[threadIdx.x] = 1;
  data[blockIdx.x * kThreads + threadIdx.x] = row[threadIdx.x];
}

__global__ void static_shared_index(float* data) {
  __shared__ float row[kThreads];
  row[threadIdx.x + static_cast<int>(gridDim.x)] = 1;
  data[threadIdx.x] = 1;
}

// ------------------------------------------------------------------------------------------------------- global memory

__global__ void global_write(float* data, int count) { data[threadIdx.x == 0 ? count : 0 * threadIdx.x] = 1; }
__global__ void global_read(float* data, int count) {
  if (threadIdx.x == 0) data[0] = data[count];
}

// Every block writes the same place, or its own.
template <bool kSame>
__global__ void blocks_write(float* data) {
  if (threadIdx.x == 0) data[kSame ? 0 : blockIdx.x] = blockIdx.x;
}

// Threads that write different bytes of a word, and read words that others have written before a barrier.
__global__ void bytes_of_a_word(float* data) {
  __shared__ float row[kThreads];
  row[threadIdx.x] = 0;
  __syncthreads();
  reinterpret_cast<unsigned char*>(row)[threadIdx.x] = 1;
  reinterpret_cast<unsigned char*>(data)[threadIdx.x] = 1;
  __syncthreads();
  data[kThreads + threadIdx.x] = row[threadIdx.x / 4];
}

__global__ void one_byte_of_two_threads(float* data) { reinterpret_cast<unsigned char*>(data)[threadIdx.x / 2] = 1; }

__global__ void atomic_sum(float* data) {
  auto* count = reinterpret_cast<unsigned*>(data);
  atomicAdd(count, 1u);
}

__global__ void plain_read_of_an_atomic(float* data) {
  auto* count = reinterpret_cast<unsigned*>(data);
  atomicAdd(count, 1u);
  if (threadIdx.x == 0) data[1] = *count;
}

// The block that comes last adds up what all have written, as in a reduction of one launch.
template <bool kFence>
__global__ void last_block_sums(float* data) {
  __shared__ bool last;
  auto* finished = reinterpret_cast<unsigned*>(data);
  if (threadIdx.x < 2) data[1 + 2 * blockIdx.x + threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kFence) __threadfence();
    last = atomicAdd(finished, 1u) == gridDim.x - 1;
    if (kFence) __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x != 32) return;
  float sum = 0;
  for (unsigned i = 0; i < 2 * gridDim.x; ++i) sum += data[1 + i];
  data[1 + 2 * gridDim.x] = sum;
}

__global__ void misaligned(float* data) {
  if (threadIdx.x == 0) data[8] = reinterpret_cast<float4*>(data + 1)->x + reinterpret_cast<double*>(data + 1)[0];
}

// --------------------------------------------------------------------------------------------------------- async copies

enum class Copies { kRight, kUncommitted, kNoWait, kNoBarrier, kTooEarly, kMisaligned, kToGlobal };

template <Copies kWhat>
__global__ void copies(float* data) {  // (3, 64)
  __shared__ __align__(16) float row[kThreads];
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    const float* from = data + round * kThreads + threadIdx.x * 4;
    float* to = kWhat == Copies::kToGlobal ? data + 2 * kThreads : row;
    if (threadIdx.x < 16) {
      __pipeline_memcpy_async(to + 4 * threadIdx.x, from + (kWhat == Copies::kMisaligned), 16);
    }
    if (kWhat != Copies::kUncommitted) __pipeline_commit();
    if (kWhat != Copies::kNoWait) __pipeline_wait_prior(0);
    if (kWhat != Copies::kNoBarrier) __syncthreads();
    sum += row[(threadIdx.x + 32) % kThreads];
    if (kWhat != Copies::kTooEarly) __syncthreads();
  }
  data[2 * kThreads + threadIdx.x] = sum;
}

// -------------------------------------------------------------------------------------------------------------- warps

// Every warp intrinsic against a loop over the lanes; data: (64,), 0 for a lane without a fault, else its number.
__global__ void intrinsics(float* data) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto value = [&](int l) { return l * 7 % 32 + 100 * warp; };
  const int mine = value(lane);
  int wrong = 0;
  const auto check = [&](int number, bool right) { wrong = wrong == 0 && !right ? number : wrong; };
  check(1,
        __shfl_sync(kAll, mine, 5) == value(5) && __shfl_sync(kAll, double(mine), lane + 3) == value((lane + 3) % 32));
  check(2, __shfl_sync(kAll, mine, 2, 8) == value(lane / 8 * 8 + 2));
  check(3, __shfl_xor_sync(kAll, int64_t(mine), 9) == value(lane ^ 9));
  check(4, __shfl_down_sync(kAll, mine, 4u) == value(lane + 4 < 32 ? lane + 4 : lane));
  check(5, __shfl_up_sync(kAll, mine, 4u) == value(lane >= 4 ? lane - 4 : lane));
  check(6, __shfl_down_sync(kAll, mine, 1u, 4) == value(lane % 4 < 3 ? lane + 1 : lane));
  check(7, __shfl_up_sync(kAll, mine, 1u, 4) == value(lane % 4 > 0 ? lane - 1 : lane));
  check(8, __shfl_xor_sync(kAll, mine, 2, 4) == value(lane ^ 2));
  unsigned odd = 0, sum = 0;
  for (int l = 0; l < 32; ++l) {
    odd |= unsigned(value(l) % 2) << l;
    sum += value(l);
  }
  check(9, __ballot_sync(kAll, mine % 2) == odd && __popc(odd) == 16);
  check(10, __any_sync(kAll, mine % 100 == 31) && !__any_sync(kAll, mine < 0));
  check(11, __all_sync(kAll, mine >= 0) && !__all_sync(kAll, mine % 100 != 0));
  check(12, __reduce_add_sync(kAll, unsigned(mine)) == sum);
  check(13, __reduce_max_sync(kAll, mine) == 31 + 100 * warp && __reduce_min_sync(kAll, mine - 50) == 100 * warp - 50);
  check(14, __match_any_sync(kAll, lane % 4) == 0x11111111u << lane % 4);
  check(15, __syncthreads_count(threadIdx.x < 40) == 40 && __syncthreads_or(threadIdx.x == 63));
  check(16, !__syncthreads_and(threadIdx.x != 63) && !__syncthreads_or(0) && __syncthreads_and(1));
  check(17, __ffs(8) == 4 && __ffs(0) == 0 && __clz(1) == 31 && __clz(0) == 32 && __clzll(1) == 63 &&
                __popcll(~0ull) == 64);
  check(18, __float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0x40000000u) == 2.0f);
  data[threadIdx.x] = wrong;
}

__global__ void atomics(float* data) {  // 64 threads; the last word counts the right results
  auto* word = reinterpret_cast<int*>(data);
  auto* wide = reinterpret_cast<unsigned long long*>(data + 8);
  atomicAdd(word, 1);
  atomicMax(word + 1, static_cast<int>(threadIdx.x));
  atomicMin(word + 2, -static_cast<int>(threadIdx.x));
  atomicOr(reinterpret_cast<unsigned*>(word + 3), 1u << threadIdx.x % 32);
  if (atomicCAS(word + 4, 0, 7) == 0) atomicExch(word + 5, 9);
  atomicAdd(wide, 1ull << 32);
  atomicMax(wide + 1, static_cast<unsigned long long>(threadIdx.x) << 40);
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool right =
        word[0] == 64 && word[1] == 63 && word[2] == -63 && word[3] == -1 && word[4] == 7 && word[5] == 9;
    word[6] = right && wide[0] == 64ull << 32 && wide[1] == 63ull << 40;
  }
}

// ----------------------------------------------------------------------------------------------------------- launching

template <typename... Parameters, typename... Arguments>
int start(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

int run(const char* name, float* data, int count) {
  const auto is = [&](const char* other) { return strcmp(name, other) == 0; };
  const auto one = [&](void (*kernel)(float*)) { return start(kernel, dim3(1), kThreads, 256, data); };
  const auto four = [&](void (*kernel)(float*)) { return start(kernel, dim3(4), kThreads, 0, data); };
  if (is("neighbour without barrier")) return one(neighbour<false>);
  if (is("neighbour")) return one(neighbour<true>);
  if (is("neighbour lane without barrier")) return one(neighbour_lane<false>);
  if (is("neighbour lane")) return one(neighbour_lane<true>);
  if (is("two rounds without barrier")) return one(two_rounds<false>);
  if (is("two rounds")) return one(two_rounds<true>);
  if (is("half a block at a barrier")) return one(half_a_block_at_a_barrier);
  if (is("two barriers for one")) return one(two_barriers_for_one);
  if (is("half a warp at a shuffle")) return one(half_a_warp_at_a_shuffle);
  if (is("half a mask")) return one(half_a_mask);
  if (is("two intrinsics for one")) return one(two_intrinsics_for_one);
  if (is("unwritten shared memory")) return one(unwritten_shared);
  if (is("write behind dynamic shared memory")) return one(dynamic_shared_write<true>);
  if (is("write of dynamic shared memory")) return one(dynamic_shared_write<false>);
  if (is("read behind dynamic shared memory")) return one(dynamic_shared_read);
  if (is("shared memory of another block")) return four(shared_of_another_block);
  if (is("write behind a shared array")) return one(static_shared_index);
  if (is("write behind a tensor")) return start(global_write, dim3(1), kThreads, 0, data, count);
  if (is("read behind a tensor")) return start(global_read, dim3(1), kThreads, 0, data, count);
  if (is("blocks write one place")) return four(blocks_write<true>);
  if (is("blocks write their own places")) return four(blocks_write<false>);
  if (is("bytes of a word")) return one(bytes_of_a_word);
  if (is("one byte of two threads")) return one(one_byte_of_two_threads);
  if (is("atomic sum")) return four(atomic_sum);
  if (is("plain read of an atomic")) return four(plain_read_of_an_atomic);
  if (is("last block without fence")) return four(last_block_sums<false>);
  if (is("last block")) return four(last_block_sums<true>);
  if (is("misaligned vector")) return one(misaligned);
  if (is("copies")) return one(copies<Copies::kRight>);
  if (is("uncommitted copies")) return one(copies<Copies::kUncommitted>);
  if (is("copies without wait")) return one(copies<Copies::kNoWait>);
  if (is("copies without barrier")) return one(copies<Copies::kNoBarrier>);
  if (is("copies begun too early")) return one(copies<Copies::kTooEarly>);
  if (is("misaligned copies")) return one(copies<Copies::kMisaligned>);
  if (is("copies to global memory")) return one(copies<Copies::kToGlobal>);
  if (is("intrinsics")) return one(intrinsics);
  if (is("atomics")) return one(atomics);
  if (is("48 threads")) return start(neighbour<true>, dim3(1), 48, 0, data);
  if (is("2048 threads")) return start(neighbour<true>, dim3(1), 2048, 0, data);
  if (is("an empty grid")) return start(neighbour<true>, dim3(0), kThreads, 0, data);
  if (is("a high grid")) return start(neighbour<true>, dim3(1, 65536), kThreads, 0, data);
  if (is("64 KB not asked for")) return start(blocks_write<false>, dim3(1), kThreads, 64 << 10, data);
  if (is("64 KB asked for")) {
    const int error =
        cudaFuncSetAttribute(dynamic_shared_write<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
    return error ? error : start(dynamic_shared_write<false>, dim3(1), kThreads, 64 << 10, data);
  }
  if (is("228 KB asked for")) {
    return cudaFuncSetAttribute(dynamic_shared_write<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10);
  }
  return -1;
}

}  // namespace
}  // namespace reidops

// The launch's error, or null: an empty text is a kernel of that name that there is not.
extern "C" __attribute__((visibility("default"))) const char* run_fault(const char* name, float* data, int count) {
  const int error = reidops::run(name, data, count);
  return error < 0 ? "" : error == 0 ? nullptr : cudaGetErrorString(static_cast<cudaError_t>(error));
}
