// What both backends say of tensors: names, typed pointers, and the choice of an element type.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

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

// Calls run(T()) with the element type of t: float or double.
template <typename Run>
auto with_floating_type(const Tensor& t, const char* name, Run run) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, name,
                  " should be float32 or float64");
  return t.scalar_type() == ScalarType::Float ? run(float()) : run(double());
}

}  // namespace reidops
