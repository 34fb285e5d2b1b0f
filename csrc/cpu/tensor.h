// Small helpers around torch::stable::Tensor for the CPU operators.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "../core/tensor.h"
#include "engine.h"

namespace reidops {

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

inline Precision parse_precision(const std::string& word) {
  STD_TORCH_CHECK(word == "highest" || word == "high" || word == "medium",
                  "precision should be highest, high or medium, got ", word);
  return word == "highest" ? Precision::kHighest : word == "high" ? Precision::kHigh : Precision::kMedium;
}

}  // namespace reidops
