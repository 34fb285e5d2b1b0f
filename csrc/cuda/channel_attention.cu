// channel_attention: softmax(query @ key^T) @ value over channels, the leader attention of MuDeep_v2, without the C x C
// matrix. Half types run on the tensor cores, the others on plain arithmetic; the header tells the passes.
#include "channel_attention.h"
#include "mma.cuh"

namespace reidops {
namespace {

// Calls run(T(), A()) with the element type of t and the type of its sums.
template <typename Run>
auto with_types(const Tensor& t, Run run) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return run(float(), float());
    case ScalarType::Double:
      return run(double(), double());
    case ScalarType::Half:
      return run(Half(), float());
    default:
      break;
  }
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::BFloat16, "query should be float16, bfloat16, float32 or float64");
  return run(BFloat16(), float());
}

// Whether it was kGradKey and has left grad_value as well.
template <typename T, typename A>
bool run_pass(Pass pass, const PassArguments<T, A>& arguments, const Tensor& like) {
  if constexpr (!std::is_same_v<T, A>) {
    if (launch_on_tensor_cores(pass, arguments, like)) {
      return pass == Pass::kGradKey && arguments.width <= kFewTensorValues;
    }
  }
  launch_plain(pass, arguments, like);
  return pass == Pass::kGradKey && arguments.width <= kFewValues;
}

Tensor dense(const Tensor& t) { return torch::stable::contiguous(t); }

void check_sizes(const Tensor& query, const Tensor& key, const Tensor& value) {
  check_input(query, 3, "query");
  for (const Tensor* t : {&key, &value}) {
    check_input(*t, 3, "query, key and value");
    check_like(*t, query, "query, key and value");
    for (int d = 0; d < 2; ++d) STD_TORCH_CHECK(t->size(d) == query.size(d), "query, key and value should match");
  }
  STD_TORCH_CHECK(key.size(2) == query.size(2), "query and key should match");
  STD_TORCH_CHECK(query.size(1) >= 1 && query.size(2) >= 1 && value.size(2) >= 1,
                  "query and value should have channels and a length");
  constexpr int64_t kMost = 1 << 24;
  STD_TORCH_CHECK(query.size(1) < kMost && query.size(2) < kMost && value.size(2) < kMost,
                  "query and value should have fewer channels or be shorter");
}

constexpr int kPadThreads = 256;

// rows: (count, width) -> padded: (count, padded_width), with zeros behind.
template <typename T>
__global__ void __launch_bounds__(kPadThreads)
    channel_attention_pad_kernel(const T* __restrict__ rows, int64_t count, int width, int padded_width,
                                 T* __restrict__ padded) {
  const int64_t step = gridDim.x * int64_t(kPadThreads);
  for (int64_t e = blockIdx.x * int64_t(kPadThreads) + threadIdx.x; e < count * padded_width; e += step) {
    const int64_t row = e / padded_width, column = e % padded_width;
    padded[e] = column < width ? rows[row * width + column] : T(0.0f);
  }
}

// Dense (batch, channels, width) numbers as the passes read them. The tensor cores' kernels copy rows 16 bytes at a time
// while they compute, and few numbers are cheaply filled up to that: 2 MB for 32 x 2048 rows.
template <typename T>
Tensor dense_values(const Tensor& values_in, const Tensor& query) {
  const Tensor values = dense(values_in);
  const int64_t rows = values.size(0) * values.size(1), width = values.size(2);
  if (sizeof(T) != 2 || width > kFewTensorValues || width % 8 == 0 || query.size(2) > kTensorLength) return values;
  const int64_t padded_width = ceil_div(width, 8) * 8;
  Tensor padded = new_tensor({values.size(0), values.size(1), padded_width}, values.scalar_type(), values);
  const int64_t blocks = std::min(ceil_div(rows * padded_width, kPadThreads), kMaxBlocks);
  launch("channel_attention", channel_attention_pad_kernel<T>, dim3(blocks), kPadThreads, 0, 0, current_stream(values),
         data<T>(values), rows, static_cast<int>(width), static_cast<int>(padded_width), mutable_data<T>(padded));
  return padded;
}

template <typename A>
constexpr ScalarType kSumType = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

std::tuple<Tensor, Tensor> channel_attention(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in) {
  check_sizes(query_in, key_in, value_in);
  const int64_t batch = query_in.size(0);
  const int channels = static_cast<int>(query_in.size(1)), length = static_cast<int>(query_in.size(2)),
            width = static_cast<int>(value_in.size(2));
  const DeviceGuard guard(query_in.get_device_index());
  Tensor output = new_tensor({batch, channels, width}, query_in.scalar_type(), query_in);
  return with_types(query_in, [&](auto zero, auto zero_sum) {
    using T = decltype(zero);
    using A = decltype(zero_sum);
    const int64_t rows = Statistics<T, A>{nullptr, channels, width}.rows();
    Tensor statistics = new_tensor({batch, rows, channels}, kSumType<A>, query_in);
    if (batch == 0) return std::make_tuple(output, statistics);
    const Tensor query = dense(query_in), key = dense(key_in), value = dense_values<T>(value_in, query_in);
    PassArguments<T, A> arguments{};
    arguments.own = {data<T>(query), nullptr};
    arguments.other = {data<T>(key), data<T>(value)};
    arguments.out = mutable_data<T>(output);
    arguments.statistics = {mutable_data<A>(statistics), channels, width};
    arguments.batch = batch;
    arguments.channels = channels;
    arguments.length = length;
    arguments.width = static_cast<int>(value.size(2));
    run_pass(Pass::kOutput, arguments, query);
    return std::make_tuple(output, statistics);
  });
}

// ---------------------------------------------------------------------------------------------------------- backward

constexpr int kDeltaThreads = 256;

// grad, output, value: (batch, channels, width), delta: (batch, channels), largest: (batch, 2), zero before, or none:
// the largest share |grad| of a query and |value| of a key, as the bits of a float, which are in the order of the
// numbers. A warp a row, or kFewValues lanes. Each tensor is read once: 37.7 MB for 32 x 2048 x 288 in a half type, so
// 113 to 151 MB with the rest of the output, 24 to 32 us at an H200's 4.8 TB/s.
template <int kLanes, typename T, typename A>
__global__ void __launch_bounds__(kDeltaThreads)
    channel_attention_delta_kernel(const T* __restrict__ grad, const T* __restrict__ output,
                                   const T* __restrict__ value, Statistics<T, A> statistics, int64_t batch,
                                   A* __restrict__ delta, unsigned* largest) {
  constexpr int kRows = kDeltaThreads / kLanes;
  const int lane = threadIdx.x % kLanes, channels = statistics.channels, width = statistics.width;
  const int64_t rows = batch * channels;
  const auto sum_lanes = [](A value) {
    for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
  };
  for (int64_t block_row = blockIdx.x * int64_t(kRows); block_row < rows; block_row += gridDim.x * int64_t(kRows)) {
    const int64_t own_row = block_row + threadIdx.x / kLanes, row = own_row < rows ? own_row : rows - 1;
    const int64_t first = row * width, image = row / channels;
    const int query = static_cast<int>(row % channels);
    A sum = A(0), grad_squares = A(0), value_squares = A(0);
#pragma unroll 4
    for (int l = lane; l < width; l += kLanes) {
      const A g = static_cast<A>(grad[first + l]);
      A o = static_cast<A>(output[first + l]);
      if constexpr (Statistics<T, A>::kHasRest) o += static_cast<A>(statistics.rest(image, query)[l]);
      sum += g * o;
      if (largest != nullptr) {
        const A v = static_cast<A>(value[first + l]);
        grad_squares += g * g;
        value_squares += v * v;
      }
    }
    sum = sum_lanes(sum);
    if (lane == 0 && own_row < rows) delta[row] = sum;
    if (largest != nullptr) {
      const A norm = sqrt(sum_lanes(grad_squares)), value_norm = sqrt(sum_lanes(value_squares));
      if (lane == 0 && own_row < rows) {
        const A share = statistics.share(image)[query];
        atomicMax(largest + image * 2, __float_as_uint(static_cast<float>(share * norm)));
        atomicMax(largest + image * 2 + 1, __float_as_uint(static_cast<float>(value_norm)));
      }
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> channel_attention_backward(const Tensor& grad_in, const Tensor& query_in,
                                                              const Tensor& key_in, const Tensor& value_in,
                                                              const Tensor& output_in, const Tensor& statistics_in) {
  check_sizes(query_in, key_in, value_in);
  for (const Tensor* t : {&grad_in, &output_in}) {
    check_sizes(query_in, key_in, *t);
    STD_TORCH_CHECK(t->size(2) == value_in.size(2), "grad and output should match value");
  }
  check_input(statistics_in, 3, "statistics");
  const int64_t batch = query_in.size(0);
  const int channels = static_cast<int>(query_in.size(1)), length = static_cast<int>(query_in.size(2)),
            width = static_cast<int>(value_in.size(2));
  const DeviceGuard guard(query_in.get_device_index());
  const auto new_grad = [&](int columns) {
    return new_tensor({batch, channels, columns}, query_in.scalar_type(), query_in);
  };
  Tensor grad_query = new_grad(length), grad_key = new_grad(length), grad_value = new_grad(width);
  return with_types(query_in, [&](auto zero, auto zero_sum) {
    using T = decltype(zero);
    using A = decltype(zero_sum);
    const int rows = Statistics<T, A>{nullptr, channels, width}.rows();
    STD_TORCH_CHECK(statistics_in.get_device_index() == query_in.get_device_index() &&
                        statistics_in.scalar_type() == kSumType<A> && statistics_in.size(0) == batch &&
                        statistics_in.size(1) == rows && statistics_in.size(2) == channels,
                    "statistics should match query");
    if (batch == 0) return std::make_tuple(grad_query, grad_key, grad_value);
    const Tensor grad = dense(grad_in), query = dense(query_in), key = dense(key_in), value = dense(value_in),
                 output = dense(output_in), statistics = dense(statistics_in);
    const Tensor delta = new_tensor({batch, channels}, kSumType<A>, query);
    constexpr bool kLargest = std::is_same_v<T, Half>;
    Tensor largest = new_tensor({kLargest ? batch : 0, 2}, ScalarType::Int, query);
    if (kLargest) torch::stable::zero_(largest);

    PassArguments<T, A> arguments{};
    arguments.statistics = {const_cast<A*>(data<A>(statistics)), channels, width};
    arguments.delta = data<A>(delta);
    arguments.largest = kLargest ? mutable_data<unsigned>(largest) : nullptr;
    arguments.batch = batch;
    arguments.channels = channels;
    arguments.length = length;
    const auto start_delta = [&](auto kernel, int lanes) {
      const int64_t blocks = std::min(ceil_div(batch * channels, kDeltaThreads / lanes), kMaxBlocks);
      launch("channel_attention_backward", kernel, dim3(blocks), kDeltaThreads, 0, 0, current_stream(query),
             data<T>(grad), data<T>(output), data<T>(value), arguments.statistics, batch, mutable_data<A>(delta),
             const_cast<unsigned*>(arguments.largest));
    };
    if (width <= kFewValues) {
      start_delta(channel_attention_delta_kernel<kFewValues, T, A>, kFewValues);
    } else {
      start_delta(channel_attention_delta_kernel<kWarp, T, A>, kWarp);
    }

    const Tensor pass_grad = dense_values<T>(grad, query), pass_value = dense_values<T>(value, query);
    arguments.width = static_cast<int>(pass_value.size(2));
    arguments.grad_value = mutable_data<T>(grad_value);
    const Side<T> queries{data<T>(query), data<T>(pass_grad)}, keys{data<T>(key), data<T>(pass_value)};
    const auto run = [&](Pass pass, const Tensor& out) {
      arguments.own = by_query(pass) ? queries : keys;
      arguments.other = by_query(pass) ? keys : queries;
      arguments.out = mutable_data<T>(out);
      return run_pass(pass, arguments, query);
    };
    run(Pass::kGradQuery, grad_query);
    if (!run(Pass::kGradKey, grad_key)) run(Pass::kGradValue, grad_value);
    return std::make_tuple(grad_query, grad_key, grad_value);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) {
  m.impl("channel_attention", TORCH_BOX(&channel_attention));
  m.impl("channel_attention_backward", TORCH_BOX(&channel_attention_backward));
}

}  // namespace reidops
