// dmli: the local distance of B pairs of images, for training (AlignedReID++, section 3).
//
// For a pair of m x d and n x d stripes: t = tanh(|x_a - y_b| / 2), then the path over t, or its diagonal. Distances
// come from the differences themselves, 3 m n d FLOPs a pair, which is exact near 0 where gradients are steepest.
// Backward recomputes t (nothing is saved) and follows the path:  d|x - y| = grad (1 - t^2) / 2,  dx = d|x - y| (x - y)
// / |x - y|.
#include <cmath>

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

// cost (m, n): stripe distances; with aligned == false only the diagonal is filled.
template <typename T>
void stripe_distances(const T* x, const T* y, const Sizes& s, bool aligned, const Kernels<T>& kernel, T* cost) {
  for (int64_t a = 0; a < s.m; ++a) {
    for (int64_t b = aligned ? 0 : a; b < (aligned ? s.n : a + 1); ++b) {
      cost[a * s.n + b] = tanh_half(std::sqrt(kernel.pair_squared_distance(x + a * s.d, y + b * s.d, s.d)));
    }
  }
}

int64_t pair_work(const Sizes& s) { return 4 * s.m * s.n * s.d; }

Tensor dmli(const Tensor& x_in, const Tensor& y_in, bool aligned) {
  const Tensor x = dense(x_in, 3, "x"), y = dense(y_in, 3, "y");
  const Sizes s = check(x, y, aligned);
  Tensor out = new_tensor({s.batch}, x.scalar_type());
  return with_floating_type(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = kernels<T>();
    const T *px = data<T>(x), *py = data<T>(y);
    T* result = mutable_data<T>(out);
    parallel_ranges(s.batch, pair_work(s), [&](int64_t begin, int64_t end) {
      std::vector<T> cost(s.m * s.n);
      for (int64_t i = begin; i < end; ++i) {
        stripe_distances(px + i * s.m * s.d, py + i * s.n * s.d, s, aligned, kernel, cost.data());
        T sum = T(0);
        if (aligned) {
          accumulate_path(cost.data(), s.m, s.n, cost.data());
          sum = cost[s.m * s.n - 1];
        } else {
          for (int64_t a = 0; a < s.m; ++a) sum += cost[a * s.n + a];
        }
        result[i] = sum;
      }
    });
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
    const auto& kernel = kernels<T>();
    const T *g = data<T>(grad), *px = data<T>(x), *py = data<T>(y);
    T *gx = mutable_data<T>(grad_x), *gy = mutable_data<T>(grad_y);
    parallel_ranges(s.batch, pair_work(s), [&](int64_t begin, int64_t end) {
      std::vector<T> cost(s.m * s.n), total(s.m * s.n);
      std::fill(gx + begin * s.m * s.d, gx + end * s.m * s.d, T(0));
      std::fill(gy + begin * s.n * s.d, gy + end * s.n * s.d, T(0));
      for (int64_t i = begin; i < end; ++i) {
        const T *left = px + i * s.m * s.d, *right = py + i * s.n * s.d;
        T *grad_left = gx + i * s.m * s.d, *grad_right = gy + i * s.n * s.d;
        stripe_distances(left, right, s, aligned, kernel, cost.data());
        const auto add_cell = [&](int64_t a, int64_t b) {
          const T* u = left + a * s.d;
          const T* v = right + b * s.d;
          const T distance = std::sqrt(kernel.pair_squared_distance(u, v, s.d));
          if (distance == T(0)) return;  // the subgradient 0 of |x - y| at x = y
          const T scale = g[i] * tanh_half_slope(distance) / distance;
          T *du = grad_left + a * s.d, *dv = grad_right + b * s.d;
          for (int64_t k = 0; k < s.d; ++k) {
            const T step = scale * (u[k] - v[k]);
            du[k] += step;
            dv[k] -= step;
          }
        };
        if (aligned) {
          accumulate_path(cost.data(), s.m, s.n, total.data());
          trace_path(total.data(), s.m, s.n, add_cell);
        } else {
          for (int64_t a = 0; a < s.m; ++a) add_cell(a, a);
        }
      }
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
