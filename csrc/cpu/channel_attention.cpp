// channel_attention: softmax(query @ key^T) @ value over channels, the leader attention of MuDeep_v2, without the C x C
// matrix of every image.
//
// query, key: (B, C, L), value: (B, C, V). A thread takes kBlock channels at a time: their C scores, the softmax and the
// weighted sum, 2 C (L + V) FLOPs a channel, while keys and values, packed once an image, stream from the cache.
//
// Backward recomputes the weights from each row's saved maximum and 1 / sum (their logarithm added up would lose the
// sum's digits beside a large maximum), image by image in two steps. By rows: scores, dP and the gradient of query; the
// gradient of the scores, dS, and the weights stay packed for the second step, C^2 numbers each of one image (25 MB in
// three bfloat16 pieces at C = 2048). By columns: the gradients of key and value from these. That is 2 C^2 (3 L + 2 V)
// FLOPs an image; C^2 numbers written once and read once cost a quarter of the product that would compute them again.
//
// MuDeep_v2 attends to a map averaged over the image and its three parts, V = 3 or 4 beside L = 288 or 192. Products so
// narrow would fill panels with zeros; kernels of the vector unit do them while the weights are at hand, and what is
// left are the products with L: one forward, three backward. Every result has one writer, or partial sums of kBlock rows
// that are added up in their order, so that the number of threads changes nothing.
#include <cmath>
#include <limits>

#include "products.h"
#include "tensor.h"

namespace reidops {
namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kFewRows = 4;  // rows of weights that stay in the first-level cache

// One thread's buffers.
template <typename T>
struct Block : BlockProduct<T> {
  using BlockProduct<T>::BlockProduct;
  Scratch<T> scores, slopes, sums;
};

template <typename T>
std::vector<Block<T>> blocks_for_workers(const Engine<T>& engine) {
  std::vector<Block<T>> blocks;
  for (int64_t worker = 0; worker < num_workers(); ++worker) blocks.emplace_back(engine);
  return blocks;
}

struct Sizes {
  int64_t batch, channels, length, width;  // width: of a value, V
  int64_t image() const { return channels * length; }
  int64_t values() const { return channels * width; }
  bool few() const { return width <= kFewValues; }
};

Sizes check(const Tensor& query, const Tensor& key, const Tensor& value) {
  const Sizes s{query.size(0), query.size(1), query.size(2), value.size(2)};
  for (const Tensor* t : {&key, &value}) {
    STD_TORCH_CHECK(t->size(0) == s.batch && t->size(1) == s.channels && t->scalar_type() == query.scalar_type(),
                    "query, key and value should match");
  }
  STD_TORCH_CHECK(key.size(2) == s.length, "query and key should match");
  STD_TORCH_CHECK(s.channels >= 1 && s.length >= 1 && s.width >= 1,
                  "query and value should have channels and a length");
  return s;
}

// An image's values, (channels, width), turned to (kFewValues, stride) and filled up with zeros.
template <typename T>
void turn_few(const T* values, const Sizes& s, int64_t stride, T* turned) {
  std::fill_n(turned, kFewValues * stride, T(0));
  for (int64_t c = 0; c < s.channels; ++c) {
    for (int64_t v = 0; v < s.width; ++v) turned[v * stride + c] = values[c * s.width + v];
  }
}

std::tuple<Tensor, Tensor> channel_attention(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in) {
  const Tensor query = dense(query_in, 3, "query"), key = dense(key_in, 3, "key"), value = dense(value_in, 3, "value");
  const Sizes s = check(query, key, value);
  Tensor output = new_tensor({s.batch, s.channels, s.width}, query.scalar_type());
  Tensor statistics = new_tensor({s.batch, 2, s.channels}, query.scalar_type());  // maximum, 1 / sum of each row
  return with_floating_type(query, "query", [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = kernels<T>();
    const T *q = data<T>(query), *k = data<T>(key), *v = data<T>(value);
    T *out = mutable_data<T>(output), *saved = mutable_data<T>(statistics);
    const Engine<T>& engine = engine_for_values<T>(
        {{q, s.batch * s.image()}, {k, s.batch * s.image()}, {v, s.few() ? 0 : s.batch * s.values()}});
    Right<T> keys(engine), values(engine);
    Scratch<T> few_values;
    std::vector<Block<T>> blocks = blocks_for_workers(engine);
    for (int64_t b = 0; b < s.batch; ++b) {
      keys.pack_plain(k + b * s.image(), s.channels, s.length);
      const int64_t stride = keys.stride();
      if (s.few()) {
        turn_few(v + b * s.values(), s, stride, few_values.reserve(kFewValues * stride));
      } else {
        values.pack_transposed(v + b * s.values(), s.width, s.channels);
      }
      parallel_tasks(
          ceil_div(s.channels, kBlock), kBlock * (s.image() + s.values()), [&](int64_t task, int64_t worker) {
            Block<T>& block = blocks[worker];
            const int64_t c0 = b * s.channels + task * kBlock;
            const int64_t rows = std::min(kBlock, s.channels - task * kBlock);
            T* scores = block.multiply(q + c0 * s.length, rows, s.length, keys, block.scores);
            T shares[kBlock];
            for (int64_t r = 0; r < rows; ++r) {
              T* row = scores + r * stride;
              T smallest = std::numeric_limits<T>::infinity(), largest = -std::numeric_limits<T>::infinity();
              kernel.extrema(row, s.channels, &smallest, &largest);
              const T sum = kernel.exponentials(row, s.channels, largest);
              shares[r] = T(1) / sum;
              T* row_saved = saved + b * 2 * s.channels + task * kBlock + r;
              row_saved[0] = largest;
              row_saved[s.channels] = shares[r];
              for (int64_t l = 0; s.few() && l < s.width; ++l) {
                out[(c0 + r) * s.width + l] = kernel.dot(row, few_values.get() + l * stride, s.channels) * shares[r];
              }
            }
            if (s.few()) return;
            const T* sums = block.multiply(scores, rows, stride, values, block.sums);
            for (int64_t r = 0; r < rows; ++r) {
              for (int64_t l = 0; l < s.width; ++l)
                out[(c0 + r) * s.width + l] = sums[r * values.stride() + l] * shares[r];
            }
          });
    }
    return std::make_tuple(output, statistics);
  });
}

// ---------------------------------------------------------------------------------------------------------- backward
//
// With P = softmax rows, dP = dO V^T, delta_i = dO_i . O_i, dS = P (dP - delta):
//   dQ = dS K,  dK^T = Q^T dS,  dV^T = dO^T P.

// Where the gradients of one image go, and what they are made of.
template <typename T>
struct Image {
  const T *query, *key;            // (channels, length)
  const T *value, *grad, *output;  // (channels, width)
  const T *largest, *share;        // (channels)
  T *grad_query, *grad_key;        // (channels, length)
  T* grad_value;                   // (channels, width)
};

template <typename T>
class Backward {
 public:
  Backward(const Engine<T>& engine, const Sizes& s)
      : s_(s),
        keys_(engine),
        keys_transposed_(engine),
        values_(engine),
        slopes_(engine),
        weights_(engine),
        queries_transposed_(engine),
        grads_transposed_(engine),
        blocks_(blocks_for_workers(engine)),
        delta_(s.channels) {}

  void run(const Image<T>& image) {
    pack(image);
    const int64_t tasks = ceil_div(s_.channels, kBlock);
    parallel_tasks(tasks, kBlock * (2 * s_.image() + s_.values()), [&](int64_t task, int64_t worker) {
      const int64_t c0 = task * kBlock, rows = std::min(kBlock, s_.channels - c0);
      s_.few() ? few_rows(image, c0, rows, blocks_[worker]) : whole_rows(image, c0, rows, blocks_[worker]);
    });
    parallel_tasks(tasks, kBlock * (s_.image() + s_.values()), [&](int64_t task, int64_t worker) {
      const int64_t c0 = task * kBlock, columns = std::min(kBlock, s_.channels - c0);
      Scratch<T>& sums = blocks_[worker].sums;
      turn_back(queries_transposed_, slopes_, c0, columns, s_.length, sums, image.grad_key);
      if (!s_.few()) turn_back(grads_transposed_, weights_, c0, columns, s_.width, sums, image.grad_value);
    });
    if (s_.few()) add_few(image.grad_value);
  }

 private:
  void pack(const Image<T>& image) {
    const int64_t channels = s_.channels;
    keys_.pack_plain(image.key, channels, s_.length);
    keys_transposed_.pack_transposed(image.key, s_.length, channels);
    queries_transposed_.pack_transposed(image.query, s_.length, channels);
    slopes_.reserve(channels, channels);
    if (s_.few()) {
      const int64_t stride = keys_.stride(), blocks = ceil_div(channels, kBlock);
      turn_few(image.value, s_, stride, few_values_.reserve(kFewValues * stride));
      few_grads_.reserve(blocks * kFewValues * stride);
    } else {
      values_.pack_plain(image.value, channels, s_.width);
      grads_transposed_.pack_transposed(image.grad, s_.width, channels);
      weights_.reserve(channels, channels);
    }
    for (int64_t c = 0; c < channels; ++c) {
      delta_[c] = kernel_.dot(image.grad + c * s_.width, image.output + c * s_.width, s_.width);
    }
  }

  // Rows c0 .. c0 + rows - 1 of P, not yet times their shares.
  T* exponentials(const Image<T>& image, int64_t c0, int64_t rows, Block<T>& block) {
    T* weights = block.multiply(image.query + c0 * s_.length, rows, s_.length, keys_, block.scores);
    for (int64_t r = 0; r < rows; ++r) {
      kernel_.exponentials(weights + r * keys_.stride(), s_.channels, image.largest[c0 + r]);
    }
    return weights;
  }

  void whole_rows(const Image<T>& image, int64_t c0, int64_t rows, Block<T>& block) {
    const int64_t stride = keys_.stride();
    T* weights = exponentials(image, c0, rows, block);
    T* slopes = block.multiply(image.grad + c0 * s_.width, rows, s_.width, values_, block.slopes);
    for (int64_t r = 0; r < rows; ++r) {
      kernel_.softmax_slopes(weights + r * stride, slopes + r * stride, s_.channels, image.share[c0 + r],
                             delta_[c0 + r]);
    }
    weights_.pack_steps(weights, stride, c0, rows);
    use_slopes(image, slopes, c0, rows, block);
  }

  void few_rows(const Image<T>& image, int64_t c0, int64_t rows, Block<T>& block) {
    const int64_t stride = keys_.stride();
    T* weights = block.multiply(image.query + c0 * s_.length, rows, s_.length, keys_, block.scores);
    T* grad_values = few_grads_.get() + c0 / kBlock * kFewValues * stride;
    std::fill_n(grad_values, kFewValues * stride, T(0));
    for (int64_t r0 = 0; r0 < rows; r0 += kFewRows) {
      const int64_t count = std::min(kFewRows, rows - r0);
      T grads[kFewRows * kFewValues] = {};
      for (int64_t r = 0; r < count; ++r) {
        kernel_.exponentials(weights + (r0 + r) * stride, s_.channels, image.largest[c0 + r0 + r]);
        std::copy_n(image.grad + (c0 + r0 + r) * s_.width, s_.width, grads + r * kFewValues);
      }
      kernel_.few_value_slopes(weights + r0 * stride, count, stride, image.share + c0 + r0, delta_.data() + c0 + r0,
                               grads, few_values_.get(), grad_values);
    }
    use_slopes(image, weights, c0, rows, block);
  }

  // The gradient of query, and the slopes kept for that of key.
  void use_slopes(const Image<T>& image, const T* slopes, int64_t c0, int64_t rows, Block<T>& block) {
    slopes_.pack_steps(slopes, keys_.stride(), c0, rows);
    const T* sums = block.multiply(slopes, rows, keys_.stride(), keys_transposed_, block.sums);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(sums + r * keys_transposed_.stride(), s_.length, image.grad_query + (c0 + r) * s_.length);
    }
  }

  // Rows c0 .. c0 + columns - 1 of `to`, (channels, width): of (left @ right)^T.
  void turn_back(const Left<T>& left, const Right<T>& right, int64_t c0, int64_t columns, int64_t width,
                 Scratch<T>& sums, T* to) {
    int64_t stride = 0;
    const T* products = left.multiply(right, c0, columns, sums, &stride);
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t l = 0; l < width; ++l) to[(c0 + c) * width + l] = products[l * stride + c];
    }
  }

  void add_few(T* grad_value) {
    const int64_t stride = keys_.stride(), blocks = ceil_div(s_.channels, kBlock);
    for (int64_t c = 0; c < s_.channels; ++c) {
      for (int64_t v = 0; v < s_.width; ++v) {
        T sum = T(0);
        for (int64_t block = 0; block < blocks; ++block) sum += few_grads_.get()[(block * kFewValues + v) * stride + c];
        grad_value[c * s_.width + v] = sum;
      }
    }
  }

  const Kernels<T>& kernel_ = kernels<T>();
  const Sizes s_;
  Right<T> keys_, keys_transposed_, values_, slopes_, weights_;
  Left<T> queries_transposed_, grads_transposed_;
  Scratch<T> few_values_, few_grads_;  // (kFewValues, stride), and as much a block of rows
  std::vector<Block<T>> blocks_;
  std::vector<T> delta_;
};

std::tuple<Tensor, Tensor, Tensor> channel_attention_backward(const Tensor& grad_in, const Tensor& query_in,
                                                              const Tensor& key_in, const Tensor& value_in,
                                                              const Tensor& output_in, const Tensor& statistics_in) {
  const Tensor query = dense(query_in, 3, "query"), key = dense(key_in, 3, "key"), value = dense(value_in, 3, "value");
  const Tensor grad = dense(grad_in, 3, "grad"), output = dense(output_in, 3, "output"),
               statistics = dense(statistics_in, 3, "statistics");
  const Sizes s = check(query, key, value);
  for (const Tensor* t : {&grad, &output}) {
    STD_TORCH_CHECK(check(query, key, *t).width == s.width, "grad and output should match value");
  }
  STD_TORCH_CHECK(statistics.size(0) == s.batch && statistics.size(1) == 2 && statistics.size(2) == s.channels &&
                      statistics.scalar_type() == query.scalar_type(),
                  "statistics should match query");
  Tensor grad_query = new_tensor({s.batch, s.channels, s.length}, query.scalar_type());
  Tensor grad_key = new_tensor({s.batch, s.channels, s.length}, query.scalar_type());
  Tensor grad_value = new_tensor({s.batch, s.channels, s.width}, query.scalar_type());
  return with_floating_type(query, "query", [&](auto zero) {
    using T = decltype(zero);
    const int64_t maps = s.batch * s.image(), values = s.batch * s.values();
    Backward<T> backward(
        engine_for_values<T>(
            {{data<T>(query), maps}, {data<T>(key), maps}, {data<T>(value), values}, {data<T>(grad), values}}),
        s);
    for (int64_t b = 0; b < s.batch; ++b) {
      const int64_t map = b * s.image(), vector = b * s.values();
      const T* largest = data<T>(statistics) + b * 2 * s.channels;
      backward.run({data<T>(query) + map, data<T>(key) + map, data<T>(value) + vector, data<T>(grad) + vector,
                    data<T>(output) + vector, largest, largest + s.channels, mutable_data<T>(grad_query) + map,
                    mutable_data<T>(grad_key) + map, mutable_data<T>(grad_value) + vector});
    }
    return std::make_tuple(grad_query, grad_key, grad_value);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) {
  m.impl("channel_attention", TORCH_BOX(&channel_attention));
  m.impl("channel_attention_backward", TORCH_BOX(&channel_attention_backward));
}

}  // namespace reidops
