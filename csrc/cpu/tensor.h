// Small helpers around torch::stable::Tensor for the CPU operators.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <vector>

namespace reidops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType type) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), type);
}

// A CPU operator's input: dense rows of the expected number of dimensions.
inline Tensor dense(const Tensor& t, int64_t dim, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == dim, name, " should be a CPU tensor of ", dim, " dimensions, got ", t.dim());
  return torch::stable::contiguous(t);
}

inline Tensor dense_int64(const Tensor& t, int64_t length, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long, name, " should be int64");
  Tensor d = dense(t, 1, name);
  STD_TORCH_CHECK(d.size(0) == length, name, " should have ", length, " elements, got ", d.size(0));
  return d;
}

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
