// euclidean_distance and its gradient.
//
// A training batch, 128 x 128 points of 2,048 channels, is 67 million FLOPs and 2 MB: microseconds; the launches bound
// it (middle, two packings, product, root).
#include "tiles.h"

namespace reidops {
namespace {

struct Sizes {
  int64_t rows, columns, depth;
};

Sizes check_points(const Tensor& x, const Tensor& y) {
  check_input(x, 2, "x");
  check_input(y, 2, "y");
  check_like(y, x, "y");
  STD_TORCH_CHECK(x.size(1) >= 1 && y.size(1) == x.size(1), "x and y should match");
  return {x.size(0), y.size(0), x.size(1)};
}

Tensor euclidean_distance(const Tensor& x_in, const Tensor& y_in, bool squared) {
  const Sizes s = check_points(x_in, y_in);
  const DeviceGuard guard(x_in.get_device_index());
  Tensor out = new_tensor({s.rows, s.columns}, x_in.scalar_type(), x_in);
  return with_floating_type(x_in, "x", [&](auto zero) {
    using T = decltype(zero);
    if (s.rows == 0 || s.columns == 0) return out;
    const Tensor x = torch::stable::contiguous(x_in), y = torch::stable::contiguous(y_in);
    EuclideanTiles<T> tiles({data<T>(x), s.rows, s.depth}, {data<T>(y), s.columns, s.depth},
                            product_format<T>("highest"), x);
    for_each_product(tiles, 0, s.rows, 0, s.columns, false, x,
                     [&](int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
                       T* const to = mutable_data<T>(out) + i0 * s.columns + j0;
                       tiles.write(buffer, i0, i1, j0, j1, !squared, to, s.columns);
                     });
    return out;
  });
}

// ---------------------------------------------------------------------------------------------------------- gradient

constexpr int kGradThreads = 256;
constexpr int kGradWarps = kGradThreads / kWarp;

// Points around the middle: (count, depth), and their squared norms: (count,).
template <typename T>
struct Centred {
  Rows<T> rows;  // as they came: (count, depth)
  Tensor values, norms;

  Centred(const Rows<T>& from, const Tensor& centre)
      : rows(from),
        values(new_tensor({from.count, from.depth}, centre.scalar_type(), centre)),
        norms(new_tensor({from.count}, centre.scalar_type(), centre)) {
    launch("centred", pack_kernel<T, Format::kPlain, true>,
           dim3(std::min(ceil_div(from.count, kPackThreads / kWarp), kMaxBlocks)), kPackThreads, 0, 0,
           current_stream(centre), from.values, data<T>(centre), from.count, from.depth, from.depth,
           values.mutable_data_ptr(), mutable_data<T>(norms));
  }
};

// What one side's gradient is made from. Element (i, j) of grad and distance lies at i row_step + j column_step.
template <typename T>
struct Side {
  const T *grad, *distance;
  int64_t row_step, column_step;
  bool squared;
  const T *own, *own_centred, *own_norms;  // (rows, depth) twice, (rows,)
  const T *other, *other_norms;            // (columns, depth), (columns,)
  int64_t rows, columns, depth;
};

// out[i] = sum over j of weight[i, j] (own[i] - other[j]) is taken apart as (sum of weights) own[i] - weights other,
// around the middle; but for near pairs, whose difference would be lost in it: they are added here one by one, in
// ascending j, and their weight in `weights` is 0. weights: (rows, columns), out: (rows, depth), without the product.
// A block a row.
template <typename T>
__global__ void __launch_bounds__(kGradThreads, 2)
    side_gradient_kernel(Side<T> side, T* __restrict__ weights, T* __restrict__ out) {
  __shared__ T scales[kGradThreads];
  __shared__ int64_t partners[kGradThreads];
  __shared__ int counts[kGradWarps];
  __shared__ T totals[kGradWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t i = blockIdx.x; i < side.rows; i += gridDim.x) {
    const T *self = side.own + i * side.depth, own_norm = side.own_norms[i];
    T* to = out + i * side.depth;
    for (int64_t k = threadIdx.x; k < side.depth; k += kGradThreads) to[k] = T(0);
    T total = T(0);
    for (int64_t first = 0; first < side.columns; first += kGradThreads) {
      const int64_t j = first + threadIdx.x;
      bool near = false;
      T weight = T(0);
      if (j < side.columns) {
        const int64_t at = i * side.row_step + j * side.column_step;
        const T g = side.grad[at], from = side.distance[at], square = side.squared ? from : from * from;
        weight = side.squared ? T(2) * g : from == T(0) ? T(0) : g / from;
        near = weight != T(0) && !(square >= kCancellation<T> * (own_norm + side.other_norms[j]));
        weights[i * side.columns + j] = near ? T(0) : weight;
        if (!near) total += weight;
      }
      const unsigned lanes = __ballot_sync(kAllLanes, near);
      if (lane == 0) counts[warp] = __popc(lanes);
      __syncthreads();
      int place = count_below(lanes, lane), count = 0;
      for (int w = 0; w < kGradWarps; ++w) {
        if (w < warp) place += counts[w];
        count += counts[w];
      }
      if (near) {
        scales[place] = weight;
        partners[place] = j;
      }
      __syncthreads();
      for (int64_t k = threadIdx.x; count > 0 && k < side.depth; k += kGradThreads) {
        T sum = to[k];
        for (int t = 0; t < count; ++t) sum += scales[t] * (self[k] - side.other[partners[t] * side.depth + k]);
        to[k] = sum;
      }
      __syncthreads();
    }
    total = warp_sum(total);
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    total = T(0);
    for (int w = 0; w < kGradWarps; ++w) total += totals[w];
    for (int64_t k = threadIdx.x; k < side.depth; k += kGradThreads) {
      to[k] += total * side.own_centred[i * side.depth + k];
    }
    __syncthreads();
  }
}

// out -= product, of as many rows
template <typename T>
struct Subtract {
  const T* product;  // (rows, columns), rows `stride` apart
  int64_t stride;
  T* out;  // (rows, columns)
  int64_t columns;
  __device__ void operator()(int64_t r, int64_t c) const { out[r * columns + c] -= product[r * stride + c]; }
};

// out = in transposed
template <typename T>
struct Transpose {
  const T* in;  // (columns, rows)
  T* out;       // (rows, columns)
  int64_t rows, columns;
  __device__ void operator()(int64_t r, int64_t c) const { out[r * columns + c] = in[c * rows + r]; }
};

// weights (rows, columns) times values (columns, depth), to all digits, whatever torch is set to: (rows,
// tile_pitch(depth)), of which the first depth columns are the result.
template <typename T>
Tensor weighted_sums(const Tensor& weights, const Tensor& values) {
  const int64_t rows = weights.size(0), columns = weights.size(1), depth = values.size(1);
  Tensor out = new_tensor({rows, tile_pitch(depth)}, values.scalar_type(), values),
         turned = new_tensor({depth, columns}, values.scalar_type(), values),
         origin = new_tensor({columns}, values.scalar_type(), values);
  origin = torch::stable::zero_(origin);
  launch_elements("euclidean_distance_backward", values, depth, columns,
                  Transpose<T>{data<T>(values), mutable_data<T>(turned), depth, columns});
  const Format format = product_format<T>("highest");
  Operand<T> left({data<T>(weights), rows, columns}, origin, format, true, rows),
      right({data<T>(turned), depth, columns}, origin, format, false, depth, kSpareColumns);
  left.load(0, rows);
  right.load(0, depth);
  multiply(format, left.row(0), left.pitch(), rows, right.row(0), right.pitch(), with_spare(depth), left.depth(),
           out.mutable_data_ptr(), tile_pitch(depth));
  return out;
}

// row_step and column_step: of grad and distance, seen with `own` as rows.
template <typename T>
Tensor side_gradient(const Tensor& grad, const Tensor& distance, int64_t row_step, int64_t column_step, bool squared,
                     const Centred<T>& own, const Centred<T>& other) {
  const Tensor& like = own.values;
  const int64_t rows = own.rows.count, columns = other.rows.count, depth = own.rows.depth;
  Tensor out = new_tensor({rows, depth}, like.scalar_type(), like),
         weights = new_tensor({rows, columns}, like.scalar_type(), like);
  const Side<T> side{data<T>(grad),
                     data<T>(distance),
                     row_step,
                     column_step,
                     squared,
                     own.rows.values,
                     data<T>(own.values),
                     data<T>(own.norms),
                     other.rows.values,
                     data<T>(other.norms),
                     rows,
                     columns,
                     depth};
  launch("euclidean_distance_backward", side_gradient_kernel<T>, dim3(std::min(rows, kMaxBlocks)), kGradThreads, 0, 0,
         current_stream(like), side, mutable_data<T>(weights), mutable_data<T>(out));
  const Tensor product = weighted_sums<T>(weights, other.values);
  launch_elements("euclidean_distance_backward", like, rows, depth,
                  Subtract<T>{data<T>(product), product.size(1), mutable_data<T>(out), depth});
  return out;
}

std::tuple<Tensor, Tensor> euclidean_distance_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& y_in,
                                                       const Tensor& distance_in, bool squared) {
  const Sizes s = check_points(x_in, y_in);
  for (const Tensor* t : {&grad_in, &distance_in}) {
    check_input(*t, 2, "grad and distance");
    check_like(*t, x_in, "grad and distance");
    STD_TORCH_CHECK(t->size(0) == s.rows && t->size(1) == s.columns, "grad and distance should match x and y");
  }
  const DeviceGuard guard(x_in.get_device_index());
  return with_floating_type(x_in, "x", [&](auto zero) {
    using T = decltype(zero);
    if (s.rows == 0 || s.columns == 0) {
      Tensor grad_x = new_tensor({s.rows, s.depth}, x_in.scalar_type(), x_in),
             grad_y = new_tensor({s.columns, s.depth}, x_in.scalar_type(), x_in);
      return std::make_tuple(torch::stable::zero_(grad_x), torch::stable::zero_(grad_y));
    }
    const Tensor x = torch::stable::contiguous(x_in), y = torch::stable::contiguous(y_in),
                 grad = torch::stable::contiguous(grad_in), distance = torch::stable::contiguous(distance_in);
    const Rows<T> left{data<T>(x), s.rows, s.depth}, right{data<T>(y), s.columns, s.depth};
    const Tensor centre = coarse_mean(left, right, x);
    const Centred<T> from_x(left, centre), from_y(right, centre);
    return std::make_tuple(side_gradient(grad, distance, s.columns, 1, squared, from_x, from_y),
                           side_gradient(grad, distance, 1, s.columns, squared, from_y, from_x));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) {
  m.impl("euclidean_distance", TORCH_BOX(&euclidean_distance));
  m.impl("euclidean_distance_backward", TORCH_BOX(&euclidean_distance_backward));
}

}  // namespace reidops
