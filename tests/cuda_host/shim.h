// Included before every source of csrc: the operators take CPU tensors and register in a namespace of their own.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "include/cuda_runtime.h"

#define is_cuda is_cpu

namespace torch::stable::accelerator {
struct HostDeviceGuard {
  explicit HostDeviceGuard(int32_t /*device_index*/) {}
  ~HostDeviceGuard() {}
};
}  // namespace torch::stable::accelerator
#define DeviceGuard HostDeviceGuard

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) MACHINE_LIBRARY_IMPL(MACHINE_NAMESPACE, m, C10_UID)
#define MACHINE_LIBRARY_IMPL(ns, m, uid) _STABLE_TORCH_LIBRARY_IMPL(ns, CPU, m, uid)
#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(ns, m) MACHINE_LIBRARY(MACHINE_NAMESPACE, m)
#define MACHINE_LIBRARY(ns, m) _STABLE_TORCH_LIBRARY_FRAGMENT(ns, m, C10_UID)

// torch's CUDA library is neither needed nor asked.
#define aoti_torch_get_current_cuda_stream machine_current_stream
#define torch_get_current_cuda_blas_handle machine_blas_handle
inline AOTITorchError machine_current_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
inline AOTITorchError machine_blas_handle(void** handle) {
  *handle = nullptr;
  return 0;
}
