// What both backends say of tensors: names, typed pointers, and the choice of an element type.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <tuple>

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // its name in older headers
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace reidops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// aten::sort.stable along the last dimension, ascending, NaN last: values and int64 indices. (torch::stable::sort is not
// in the headers of torch 2.10.)
inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& t) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(t),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(t.dim() - 1), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// Calls run(T()) with the element type of t: float or double.
template <typename Run>
auto with_floating_type(const Tensor& t, const char* name, Run run) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, name,
                  " should be float32 or float64");
  return t.scalar_type() == ScalarType::Float ? run(float()) : run(double());
}

}  // namespace reidops
