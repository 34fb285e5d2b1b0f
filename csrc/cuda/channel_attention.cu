// channel_attention: softmax(query @ key^T) @ value over channels, the leader attention of MuDeep_v2, with the C x C
// scores of a few images, or of some rows of one, at a time.
//
// cuBLAS makes the products, at the tensor cores' full speed, and the kernels between them go over the scores once, while
// these still lie in the L2 cache. With N = B C^2 L and values as long as queries forward is 4 N FLOPs, and backward 10 N,
// scores made again included. MuDeep_v2 attends to averages, values of 3 or 4 numbers: their products happen in the
// kernels, forward is 2 N, and backward 6 N. 72 x 2,048 x 288 has N = 87 GFLOP: 0.9 ms in bfloat16 at 770 TFLOP/s, and
// 42 MB of scores and slopes an image go through the L2 cache, two passes forward and five backward, 6.6 GB: 1.2 ms at
// 5.5 TB/s. Lengths that fill no 16 bytes (an odd number of positions) take cuBLAS's slower kernels.
#include "channel_attention_backward.cuh"
#include "channel_attention_forward.cuh"
#include "gemm.h"

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

template <typename A>
constexpr ScalarType kSumType = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

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
  constexpr int64_t kMost = 1 << 23;
  STD_TORCH_CHECK(query.size(1) < kMost && query.size(2) < kMost && value.size(2) < kMost,
                  "query and value should have fewer channels or be shorter");
}

// How numbers of a value are padded in the kernels that take few of them; 0: a matrix product takes them.
int padded_width(int width) { return width > kFewValues ? 0 : width > kSomeValues ? kFewValues : kSomeValues; }

// Calls run(std::integral_constant<int, few>()) for a number that padded_width gives.
template <typename Run>
void with_few(int few, Run run) {
  if (few == kSomeValues) {
    run(std::integral_constant<int, kSomeValues>());
  } else if (few == kFewValues) {
    run(std::integral_constant<int, kFewValues>());
  } else {
    run(std::integral_constant<int, 0>());
  }
}

// The work in parts whose scores take half of kScratchBytes: some images, or some rows of one.
class Parts {
 public:
  Parts(int64_t batch, int channels, int64_t score_bytes) : batch_(batch), channels_(channels) {
    constexpr int64_t kMostImages = 65535;  // of a grid's dimension
    pitch_ = ceil_div(channels, kPitchColumns) * kPitchColumns;
    const int64_t rows = kScratchBytes / 2 / (pitch_ * score_bytes);
    rows_ = static_cast<int>(rows >= channels ? channels : std::max<int64_t>(rows / kSlopeRows, 1) * kSlopeRows);
    rows_ = std::min(rows_, channels);
    images_ = static_cast<int>(std::clamp<int64_t>(rows / channels, 1, std::min(batch, kMostImages)));
  }

  int64_t pitch() const { return pitch_; }
  int images() const { return images_; }
  int64_t scores() const { return images_ * rows_ * pitch_; }  // elements of a part
  int groups() const { return static_cast<int>(ceil_div(rows_, kSlopeRows)); }
  bool whole_images() const { return rows_ == channels_; }

  template <typename Visit>
  void for_each(const Visit& visit) const {
    for (int64_t image = 0; image < batch_; image += images_) {
      for (int row = 0; row < channels_; row += rows_) {
        visit(Part{image, static_cast<int>(std::min<int64_t>(images_, batch_ - image)), row,
                   std::min(rows_, channels_ - row), channels_, pitch_});
      }
    }
  }

 private:
  int64_t batch_, pitch_;
  int channels_, rows_, images_;
};

// Rows of (batch, channels, width) tensors as the products take them, from the part's first image on: those from `row` on.
Matrices rows_from(const Tensor& t, const Part& part, int row, bool turned) {
  const ScalarType type = t.scalar_type();
  const int64_t width = t.size(2), bytes = type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  const auto* values = static_cast<const unsigned char*>(t.const_data_ptr());
  return {values + (part.image * part.channels + row) * width * bytes, type, width, part.channels * width, turned};
}
Matrices all_rows(const Tensor& t, const Part& part, bool turned) { return rows_from(t, part, 0, turned); }
Matrices part_rows(const Tensor& t, const Part& part) { return rows_from(t, part, part.row, false); }

// (images, rows, pitch) of the part, whatever they are.
Matrices part_scores(const Tensor& t, const Part& part, bool turned) {
  return {t.const_data_ptr(), t.scalar_type(), part.pitch, part.rows * part.pitch, turned};
}

void make_scores(const Tensor& query, const Tensor& key, const Part& part, const Tensor& scores) {
  multiply_batch(part_rows(query, part), all_rows(key, part, true), part.rows, part.channels, query.size(2),
                 part.images, false, part_scores(scores, part, false));
}

int64_t each_blocks(int64_t count) { return std::min(ceil_div(count, kEachThreads), kMaxBlocks); }

// ----------------------------------------------------------------------------------------------------------- forward

// value: (batch, channels, width) -> (batch, few, pitch).
template <typename T, typename A>
Tensor turned_values(const Tensor& value, int few, int64_t pitch) {
  const int64_t batch = value.size(0), count = batch * few * pitch;
  Tensor turned = new_tensor({batch, few, pitch}, kSumType<A>, value);
  launch("channel_attention", turn_values_kernel<T, A>, dim3(std::min(ceil_div(count, kTurnThreads), kMaxBlocks)),
         kTurnThreads, 0, 0, current_stream(value), data<T>(value), batch, static_cast<int>(value.size(1)),
         static_cast<int>(value.size(2)), few, pitch, mutable_data<A>(turned));
  return turned;
}

template <typename T, typename A>
void attend(const Tensor& query, const Tensor& key, const Tensor& value, const Statistics<T, A>& statistics,
            Tensor& output) {
  const int channels = statistics.channels, width = statistics.width, few = padded_width(width);
  const Parts parts(query.size(0), channels, sizeof(A));
  const Tensor scores = new_tensor({parts.scores()}, kSumType<A>, query);
  const auto stream = current_stream(query);
  if (few > 0) {
    const Tensor turned = turned_values<T, A>(value, few, parts.pitch());
    parts.for_each([&](const Part& part) {
      make_scores(query, key, part, scores);
      with_few(few, [&](auto number) {
        constexpr int kFew = decltype(number)::value;
        if constexpr (kFew > 0) {
          const int64_t rows = kAttendThreads / kWarp * kAttendRows<kFew>;
          launch("channel_attention", attend_kernel<T, A, kFew>, dim3(ceil_div(part.rows, rows), part.images),
                 kAttendThreads, 0, 0, stream, data<A>(scores), part, data<A>(turned) + part.image * kFew * part.pitch,
                 statistics, mutable_data<T>(output));
        }
      });
    });
    return;
  }
  constexpr bool kInPlace = std::is_same_v<T, A>;
  const Tensor weights = kInPlace ? scores : new_tensor({parts.scores()}, query.scalar_type(), query);
  const Tensor sums = new_tensor({parts.scores() / parts.pitch(), width}, kSumType<A>, query);
  parts.for_each([&](const Part& part) {
    make_scores(query, key, part, scores);
    launch("channel_attention", weigh_kernel<T, A>, dim3(ceil_div(part.rows, kWeighThreads / kWarp), part.images),
           kWeighThreads, 0, 0, stream, data<A>(scores), part, statistics, static_cast<T*>(weights.mutable_data_ptr()));
    const Matrices to{sums.const_data_ptr(), sums.scalar_type(), width, int64_t(part.rows) * width, false};
    multiply_batch(part_scores(weights, part, false), all_rows(value, part, false), part.rows, width, channels,
                   part.images, false, to);
    launch("channel_attention", attended_kernel<T, A>, dim3(each_blocks(int64_t(part.images) * part.rows * width)),
           kEachThreads, 0, 0, stream, data<A>(sums), part, statistics, mutable_data<T>(output));
  });
}

std::tuple<Tensor, Tensor> channel_attention(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in) {
  check_sizes(query_in, key_in, value_in);
  const int64_t batch = query_in.size(0);
  const int channels = static_cast<int>(query_in.size(1)), width = static_cast<int>(value_in.size(2));
  const DeviceGuard guard(query_in.get_device_index());
  Tensor output = new_tensor({batch, channels, width}, query_in.scalar_type(), query_in);
  return with_types(query_in, [&](auto zero, auto zero_sum) {
    using T = decltype(zero);
    using A = decltype(zero_sum);
    const int64_t rows = Statistics<T, A>{nullptr, channels, width}.rows();
    Tensor statistics = new_tensor({batch, rows, channels}, kSumType<A>, query_in);
    if (batch > 0) {
      attend<T, A>(dense(query_in), dense(key_in), dense(value_in), {mutable_data<A>(statistics), channels, width},
                   output);
    }
    return std::make_tuple(output, statistics);
  });
}

// ---------------------------------------------------------------------------------------------------------- backward

// A gradient that products with slopes or weights make: straight into the tensor, or by float32 sums where its type does
// not hold them, be it that it is float16, whose slopes are scaled, or that parts of the rows are added up.
template <typename T, typename A>
class Gradient {
 public:
  // added_up: every part gives a share of all rows, else of its own rows.
  Gradient(const Tensor& gradient, const Parts& parts, bool added_up)
      : gradient_(gradient), added_up_(added_up && !parts.whole_images()) {
    by_sums_ = std::is_same_v<T, Half> || (!std::is_same_v<T, A> && added_up_);
    if (by_sums_) {
      const int64_t rows = added_up ? gradient.size(1) * parts.images() : parts.scores() / parts.pitch();
      sums_ = new_tensor({rows, gradient.size(2)}, kSumType<A>, gradient);
    }
  }

  // left, of the part's slopes or weights, times right; divisor, and slope_scale by largest, were on them.
  void multiply(const Matrices& left, const Matrices& right, const Part& part, A divisor, const unsigned* largest) {
    const int64_t columns = gradient_.size(2), rows = left.turned ? part.channels : part.rows;
    const int64_t depth = left.turned ? part.rows : part.channels, size = rows * columns;
    const Matrices place = left.turned ? all_rows(gradient_, part, false) : part_rows(gradient_, part);
    const Matrices to = by_sums_ ? Matrices{sums_->const_data_ptr(), kSumType<A>, columns, size, false} : place;
    multiply_batch(left, right, rows, columns, depth, part.images, added_up_ && part.row > 0, to);
    if (!by_sums_ || (added_up_ && part.row + part.rows < part.channels)) return;
    // More than one image only if all of their rows are in the part: then what is written lies in one piece.
    if constexpr (!std::is_same_v<T, A>) {
      launch("channel_attention_backward", gradient_kernel<T, A>, dim3(each_blocks(part.images * size)), kEachThreads,
             0, 0, current_stream(gradient_), static_cast<const A*>(sums_->const_data_ptr()), part.image,
             int64_t(part.images), size, divisor, largest, static_cast<T*>(const_cast<void*>(place.values)));
    }
  }

 private:
  Tensor gradient_;
  bool added_up_, by_sums_;
  std::optional<Tensor> sums_;
};

struct Tensors {
  Tensor grad, query, key, value, output, grad_query, grad_key, grad_value;
};

// delta: (batch, channels), largest: (batch, 2) or none
template <typename T, typename A>
void start_delta(const Tensors& t, const Statistics<T, A>& statistics, A* delta, unsigned* largest) {
  const int64_t batch = t.query.size(0);
  const auto start = [&](auto kernel, int lanes) {
    const int64_t blocks = std::min(ceil_div(batch * statistics.channels, kDeltaThreads / lanes), kMaxBlocks);
    launch("channel_attention_backward", kernel, dim3(blocks), kDeltaThreads, 0, 0, current_stream(t.query),
           data<T>(t.grad), data<T>(t.output), data<T>(t.value), statistics, batch, delta, largest);
  };
  if (statistics.width <= kSomeValues) {
    start(channel_attention_delta_kernel<kSomeValues, T, A>, kSomeValues);
  } else {
    start(channel_attention_delta_kernel<kWarp, T, A>, kWarp);
  }
}

template <typename T, typename A>
void attend_backward(const Tensors& t, const Statistics<T, A>& statistics) {
  const int64_t batch = t.query.size(0);
  const int channels = statistics.channels, width = statistics.width, few = padded_width(width);
  const ScalarType type = t.query.scalar_type();
  const Tensor delta = new_tensor({batch, channels}, kSumType<A>, t.query);
  constexpr bool kScaled = std::is_same_v<T, Half>, kInPlace = std::is_same_v<T, A>;
  Tensor norms = new_tensor({kScaled ? batch : 0, 2}, ScalarType::Int, t.query);
  if (kScaled) torch::stable::zero_(norms);
  unsigned* const largest = kScaled ? static_cast<unsigned*>(norms.mutable_data_ptr()) : nullptr;
  start_delta<T, A>(t, statistics, static_cast<A*>(delta.mutable_data_ptr()), largest);

  const Parts parts(batch, channels, sizeof(A));
  const auto part_sized = [&](bool wanted, ScalarType of) {
    return new_tensor({wanted ? parts.scores() : 0}, of, t.query);
  };
  const Tensor scores = part_sized(true, kSumType<A>), products = part_sized(few == 0, kSumType<A>);
  const Tensor slopes = kInPlace ? scores : part_sized(true, type);
  const Tensor weights = kInPlace ? products : part_sized(few == 0, type);
  const Tensor value_parts = new_tensor({parts.images(), parts.groups(), few, parts.pitch()}, kSumType<A>, t.query);
  const Tensor value_sums = new_tensor({parts.whole_images() ? 0 : few, parts.pitch()}, kSumType<A>, t.query);
  Gradient<T, A> grad_query(t.grad_query, parts, false), grad_key(t.grad_key, parts, true);
  std::optional<Gradient<T, A>> grad_value;
  if (few == 0) grad_value.emplace(t.grad_value, parts, true);
  const auto stream = current_stream(t.query);
  parts.for_each([&](const Part& part) {
    make_scores(t.query, t.key, part, scores);
    if (few == 0) {
      multiply_batch(part_rows(t.grad, part), all_rows(t.value, part, true), part.rows, channels, width, part.images,
                     false, part_scores(products, part, false));
    }
    const int64_t groups = ceil_div(part.rows, kSlopeRows);
    with_few(few, [&](auto number) {
      constexpr int kFew = decltype(number)::value;
      const dim3 grid(groups, ceil_div(channels, kSlopeThreads * kVector<A>), part.images);
      launch("channel_attention_backward", slope_kernel<T, A, kFew>, grid, kSlopeThreads, 0, 0, stream, data<A>(scores),
             data<A>(products), part, data<T>(t.grad), data<T>(t.value), statistics, data<A>(delta), largest,
             static_cast<T*>(slopes.mutable_data_ptr()), static_cast<T*>(weights.mutable_data_ptr()),
             static_cast<A*>(value_parts.mutable_data_ptr()));
    });
    grad_query.multiply(part_scores(slopes, part, false), all_rows(t.key, part, false), part, A(1), largest);
    grad_key.multiply(part_scores(slopes, part, true), part_rows(t.query, part), part, A(1), largest);
    if (few == 0) {
      grad_value->multiply(part_scores(weights, part, true), part_rows(t.grad, part), part, A(kWeightScale<T>),
                           nullptr);
      return;
    }
    launch("channel_attention_backward", value_gradient_kernel<T, A>,
           dim3(ceil_div(channels, kEachThreads), width, part.images), kEachThreads, 0, 0, stream, data<A>(value_parts),
           static_cast<int>(groups), few, part, width, static_cast<A*>(value_sums.mutable_data_ptr()),
           static_cast<T*>(t.grad_value.mutable_data_ptr()));
  });
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
  const int channels = static_cast<int>(query_in.size(1)), width = static_cast<int>(value_in.size(2));
  const DeviceGuard guard(query_in.get_device_index());
  const auto new_grad = [&](int64_t columns) {
    return new_tensor({batch, channels, columns}, query_in.scalar_type(), query_in);
  };
  Tensor grad_query = new_grad(query_in.size(2)), grad_key = new_grad(query_in.size(2)), grad_value = new_grad(width);
  return with_types(query_in, [&](auto zero, auto zero_sum) {
    using T = decltype(zero);
    using A = decltype(zero_sum);
    const int rows = Statistics<T, A>{nullptr, channels, width}.rows();
    STD_TORCH_CHECK(statistics_in.get_device_index() == query_in.get_device_index() &&
                        statistics_in.scalar_type() == kSumType<A> && statistics_in.size(0) == batch &&
                        statistics_in.size(1) == rows && statistics_in.size(2) == channels,
                    "statistics should match query");
    if (batch > 0) {
      const Tensor statistics = dense(statistics_in);
      const Tensors tensors{dense(grad_in),   dense(query_in), dense(key_in), dense(value_in),
                            dense(output_in), grad_query,      grad_key,      grad_value};
      attend_backward<T, A>(tensors, {const_cast<A*>(data<A>(statistics)), channels, width});
    }
    return std::make_tuple(grad_query, grad_key, grad_value);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) {
  m.impl("channel_attention", TORCH_BOX(&channel_attention));
  m.impl("channel_attention_backward", TORCH_BOX(&channel_attention_backward));
}

}  // namespace reidops
