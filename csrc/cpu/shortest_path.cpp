// shortest_path: the cheapest monotone path through each (m, n) matrix of a batch, its gradient and its cells.
#include "../core/path.h"

#include "parallel.h"
#include "tensor.h"

namespace reidops {
namespace {

constexpr int64_t kCellWork = 16;  // of parallel_ranges

Tensor shortest_path(const Tensor& cost) {
  const Tensor costs = dense(cost, 3, "cost");
  const int64_t batch = costs.size(0), m = costs.size(1), n = costs.size(2);
  STD_TORCH_CHECK(m >= 1 && n >= 1, "cost should have at least one cell a matrix");
  Tensor out = new_tensor({batch}, costs.scalar_type());
  return with_floating_type(costs, "cost", [&](auto zero) {
    using T = decltype(zero);
    const T* from = data<T>(costs);
    T* result = mutable_data<T>(out);
    parallel_ranges(batch, kCellWork * m * n, [&](int64_t begin, int64_t end) {
      std::vector<T> total(m * n);
      for (int64_t b = begin; b < end; ++b) {
        accumulate_path(from + b * m * n, m, n, total.data());
        result[b] = total[m * n - 1];
      }
    });
    return out;
  });
}

// d cost = grad on the path's cells, 0 elsewhere.
Tensor shortest_path_backward(const Tensor& grad, const Tensor& cost) {
  const Tensor costs = dense(cost, 3, "cost"), grads = dense(grad, 1, "grad");
  const int64_t batch = costs.size(0), m = costs.size(1), n = costs.size(2);
  STD_TORCH_CHECK(m >= 1 && n >= 1 && grads.size(0) == batch && grads.scalar_type() == costs.scalar_type(),
                  "grad and cost should match");
  Tensor out = new_tensor({batch, m, n}, costs.scalar_type());
  return with_floating_type(costs, "cost", [&](auto zero) {
    using T = decltype(zero);
    const T *from = data<T>(costs), *g = data<T>(grads);
    T* result = mutable_data<T>(out);
    parallel_ranges(batch, kCellWork * m * n, [&](int64_t begin, int64_t end) {
      std::vector<T> total(m * n);
      std::fill(result + begin * m * n, result + end * m * n, T(0));
      for (int64_t b = begin; b < end; ++b) {
        accumulate_path(from + b * m * n, m, n, total.data());
        trace_path(total.data(), m, n, [&](int64_t i, int64_t j) { result[(b * m + i) * n + j] = g[b]; });
      }
    });
    return out;
  });
}

Tensor shortest_path_indices(const Tensor& cost) {
  const Tensor costs = dense(cost, 2, "cost");
  const int64_t m = costs.size(0), n = costs.size(1);
  STD_TORCH_CHECK(m >= 1 && n >= 1, "cost should have at least one cell");
  Tensor out = new_tensor({m + n - 1, 2}, ScalarType::Long);
  return with_floating_type(costs, "cost", [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> total(m * n);
    accumulate_path(data<T>(costs), m, n, total.data());
    int64_t* cells = mutable_data<int64_t>(out);
    int64_t cell = m + n - 1;
    trace_path(total.data(), m, n, [&](int64_t i, int64_t j) {
      --cell;
      cells[2 * cell] = i;
      cells[2 * cell + 1] = j;
    });
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) {
  m.impl("shortest_path", TORCH_BOX(&shortest_path));
  m.impl("shortest_path_backward", TORCH_BOX(&shortest_path_backward));
  m.impl("shortest_path_indices", TORCH_BOX(&shortest_path_indices));
}

}  // namespace reidops
