// What csrc/cuda uses of CUDA's language and runtime, for a host compiler.
#pragma once

#include <math.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "../machine.h"

// ----------------------------------------------------------------------------------------------------------- language

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ const
// Static within a function, and extern where the source says so. All of a library's shared memory then lies together,
// so that the machine can poison it before each block.
#define __shared__ thread_local

inline constexpr int warpSize = 32;

#define MACHINE_VECTOR(type, scalar, alignment)                        \
  struct __align__(alignment(2)) type##2 { scalar x, y; };             \
  struct type##3 { scalar x, y, z; };                                  \
  struct __align__(alignment(4)) type##4 { scalar x, y, z, w; };       \
  inline type##2 make_##type##2(scalar x, scalar y) { return {x, y}; } \
  inline type##4 make_##type##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
#define MACHINE_ALIGN_1(n) (n)
#define MACHINE_ALIGN_2(n) (2 * (n))
#define MACHINE_ALIGN_4(n) (4 * (n))
#define MACHINE_ALIGN_8(n) 16
MACHINE_VECTOR(char, signed char, MACHINE_ALIGN_1)
MACHINE_VECTOR(uchar, unsigned char, MACHINE_ALIGN_1)
MACHINE_VECTOR(short, short, MACHINE_ALIGN_2)
MACHINE_VECTOR(ushort, unsigned short, MACHINE_ALIGN_2)
MACHINE_VECTOR(int, int, MACHINE_ALIGN_4)
MACHINE_VECTOR(uint, unsigned, MACHINE_ALIGN_4)
MACHINE_VECTOR(float, float, MACHINE_ALIGN_4)
MACHINE_VECTOR(longlong, long long, MACHINE_ALIGN_8)
MACHINE_VECTOR(ulonglong, unsigned long long, MACHINE_ALIGN_8)
MACHINE_VECTOR(double, double, MACHINE_ALIGN_8)

// ------------------------------------------------------------------------------------------------------------ runtime

enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
using cudaError = cudaError_t;
using cudaStream_t = struct CUstream_st*;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrL2CacheSize,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : machine::last_error();
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  const machine::Limits& limits = machine::limits();
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(limits.shared_memory);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(limits.shared_memory) + 1024;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = static_cast<int>(limits.multiprocessors);
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// Everything runs when it is launched, so every stream has always come as far as every other.
using cudaEvent_t = struct CUevent_st*;
constexpr unsigned cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1;
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned) { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr) {
  memmove(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes,
                                     size_t rows, cudaMemcpyKind, cudaStream_t = nullptr) {
  for (size_t r = 0; r < rows; ++r) {
    memmove(static_cast<char*>(to) + r * to_pitch, static_cast<const char*>(from) + r * from_pitch, bytes);
  }
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return static_cast<cudaError_t>(machine::allow_shared_memory(reinterpret_cast<const void*>(kernel), value));
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const Call call{kernel, {static_cast<Parameters>(arguments)...}};
  const auto run = [](const void* c) {
    const Call& call = *static_cast<const Call*>(c);
    std::apply(call.kernel, call.arguments);
  };
  return static_cast<cudaError_t>(machine::launch({config->gridDim, config->blockDim, config->dynamicSmemBytes,
                                                   reinterpret_cast<const void*>(kernel), run, &call}));
}

#include "intrinsics.h"
