// dmli: the local distance of B pairs of images, for training (AlignedReID++, section 3).
//
// For a pair of m x d and n x d stripes: t = tanh(|x_a - y_b| / 2), then the path over t, or its diagonal. Distances
// come from the differences themselves, 3 m n d FLOPs a pair, which is exact near 0 where gradients are steepest: with
// 8 stripes of 128 channels that is 8 KB read and 512 cycles of AVX-512, and as much again for tanh and the path.
// Backward recomputes t (nothing is saved) and follows the path: each stripe gathers, over its cells, w (x_a - y_b) with
// w = grad (1 - t^2) / 2 / |x_a - y_b|.
#include <array>
#include <limits>

#include "../core/path.h"
#include "../core/stripe.h"
#include "parallel.h"
#include "simd.h"
#include "tensor.h"

namespace reidops {
namespace {

struct Sizes {
  int64_t batch, m, n, d;
};

Sizes check(const Tensor& x, const Tensor& y, bool aligned) {
  STD_TORCH_CHECK(x.size(0) == y.size(0) && x.size(2) == y.size(2) && x.scalar_type() == y.scalar_type(),
                  "x and y should match");
  STD_TORCH_CHECK(x.size(1) >= 1 && y.size(1) >= 1 && x.size(2) >= 1, "x and y should have stripes");
  STD_TORCH_CHECK(aligned || x.size(1) == y.size(1), "x and y should have as many stripes");
  return {x.size(0), x.size(1), y.size(1), x.size(2)};
}

// The (m, n) cells of one pair of images; with aligned == false only the diagonal is filled.
template <typename T>
class Cells {
 public:
  Cells(const Sizes& sizes, bool aligned) : s_(sizes), aligned_(aligned), memory_(3 * s_.m * s_.n) {}

  T* distance() { return memory_.data(); }                 // |x_a - y_b|
  T* cost() { return memory_.data() + s_.m * s_.n; }       // its tanh(. / 2)
  T* total() { return memory_.data() + 2 * s_.m * s_.n; }  // of the cheapest path to the cell

  void fill(const T* x, const T* y) {
    if (aligned_) {
      kernel_.pair_distances(x, s_.m, y, s_.n, s_.d, distance(), s_.n);
      kernel_.stripe_costs(distance(), s_.m * s_.n, cost());
      accumulate_path(cost(), s_.m, s_.n, total());
      return;
    }
    for (int64_t a = 0; a < s_.m; ++a) {
      const int64_t cell = a * s_.n + a;
      kernel_.pair_distances(x + a * s_.d, 1, y + a * s_.d, 1, s_.d, distance() + cell, 1);
      kernel_.stripe_costs(distance() + cell, 1, cost() + cell);
    }
  }

  // Every stripe is in one of the cells, so that no value of x and y is other than finite where all distances are.
  bool finite() {
    int beyond = 0;
    for (int64_t a = 0; a < s_.m; ++a) {
      for (int64_t b = aligned_ ? 0 : a; b < (aligned_ ? s_.n : a + 1); ++b)
        beyond |= !(distance()[a * s_.n + b] <= std::numeric_limits<T>::max());
    }
    return beyond == 0;
  }

  T sum() {
    if (aligned_) return total()[s_.m * s_.n - 1];
    T sum = T(0);
    for (int64_t a = 0; a < s_.m; ++a) sum += cost()[a * s_.n + a];
    return sum;
  }

  // Calls visit(a, b) for the cells that add up to the sum, from the last to the first.
  template <typename Visit>
  void trace(Visit visit) {
    if (aligned_) return trace_path(total(), s_.m, s_.n, visit);
    for (int64_t a = s_.m - 1; a >= 0; --a) visit(a, a);
  }

 private:
  const Kernels<T>& kernel_ = kernels<T>();
  Sizes s_;
  bool aligned_;
  std::vector<T> memory_;
};

// The gradients of one pair of images.
template <typename T>
class PairGradient {
 public:
  PairGradient(const Sizes& sizes, bool aligned)
      : s_(sizes), cells_(sizes, aligned), path_(sizes.m + sizes.n), weights_(path_.size()), others_(path_.size()) {}

  // grad: of the distance of x (m, d) and y (n, d).
  void run(const T* x, const T* y, T grad, T* grad_x, T* grad_y) {
    cells_.fill(x, y);
    int64_t count = 0;
    cells_.trace([&](int64_t a, int64_t b) {
      path_[count] = {a, b};
      weights_[count++] = cells_.distance()[a * s_.n + b];
    });
    kernel_.stripe_slopes(weights_.data(), count);
    for (int64_t c = 0; c < count; ++c) weights_[c] *= grad;
    gather(count, 0, x, y, grad_x);
    gather(count, 1, y, x, grad_y);
  }

 private:
  // The path comes by each stripe of a side once, in the cells that follow one another.
  void gather(int64_t count, int side, const T* own, const T* other, T* grad) {
    for (int64_t c = 0; c < count; ++c) others_[c] = other + path_[c][1 - side] * s_.d;
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
      const int64_t stripe = path_[begin][side];
      while (end < count && path_[end][side] == stripe) ++end;
      kernel_.weighted_differences(own + stripe * s_.d, &others_[begin], &weights_[begin], end - begin, s_.d,
                                   grad + stripe * s_.d);
    }
  }

  const Kernels<T>& kernel_ = kernels<T>();
  Sizes s_;
  Cells<T> cells_;
  std::vector<std::array<int64_t, 2>> path_;
  std::vector<T> weights_;
  std::vector<const T*> others_;
};

// Of parallel_ranges: differences, tanh and path of a pair of images; a gradient takes twice as long.
int64_t pair_work(const Sizes& s) { return 6 * s.m * s.n * s.d; }

Tensor dmli(const Tensor& x_in, const Tensor& y_in, bool aligned, bool refuse) {
  const Tensor x = dense(x_in, 3, "x"), y = dense(y_in, 3, "y");
  const Sizes s = check(x, y, aligned);
  Tensor out = new_tensor({s.batch}, x.scalar_type());
  return with_floating_type(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const T *px = data<T>(x), *py = data<T>(y);
    T* result = mutable_data<T>(out);
    std::atomic<bool> finite{true};
    parallel_ranges(s.batch, pair_work(s), [&](int64_t begin, int64_t end) {
      Cells<T> cells(s, aligned);
      for (int64_t i = begin; i < end; ++i) {
        cells.fill(px + i * s.m * s.d, py + i * s.n * s.d);
        result[i] = cells.sum();
        if (refuse && !cells.finite()) finite = false;
      }
    });
    STD_TORCH_CHECK(finite, "x and y should be finite, and their squares as well");
    return out;
  });
}

std::tuple<Tensor, Tensor> dmli_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& y_in, bool aligned) {
  const Tensor grad = dense(grad_in, 1, "grad"), x = dense(x_in, 3, "x"), y = dense(y_in, 3, "y");
  const Sizes s = check(x, y, aligned);
  STD_TORCH_CHECK(grad.size(0) == s.batch && grad.scalar_type() == x.scalar_type(), "grad should match x");
  Tensor grad_x = new_tensor({s.batch, s.m, s.d}, x.scalar_type()),
         grad_y = new_tensor({s.batch, s.n, s.d}, x.scalar_type());
  return with_floating_type(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const T *g = data<T>(grad), *px = data<T>(x), *py = data<T>(y);
    T *gx = mutable_data<T>(grad_x), *gy = mutable_data<T>(grad_y);
    const int64_t size_x = s.m * s.d, size_y = s.n * s.d;
    parallel_ranges(s.batch, 2 * pair_work(s), [&](int64_t begin, int64_t end) {
      PairGradient<T> gradient(s, aligned);
      for (int64_t i = begin; i < end; ++i)
        gradient.run(px + i * size_x, py + i * size_y, g[i], gx + i * size_x, gy + i * size_y);
    });
    return std::make_tuple(grad_x, grad_y);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) {
  m.impl("dmli", TORCH_BOX(&dmli));
  m.impl("dmli_backward", TORCH_BOX(&dmli_backward));
}

}  // namespace reidops
