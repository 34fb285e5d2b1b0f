// channel_attention: softmax(query @ key^T) @ value over channels, the leader attention of MuDeep_v2, without the C x C
// matrix.
//
// query, key, value: (B, C, L). A thread takes kBlock channels at a time: their C scores, the softmax and the weighted
// sum, 4 C L FLOPs a channel, while keys and values, packed once an image, stream from the cache. Backward recomputes
// the weights from each row's saved maximum and 1 / sum (their logarithm added up would lose the sum's digits beside a
// large maximum): once by rows (gradient of query) and once by columns (of key and value), so that every result has one
// writer and the sums do not depend on the number of threads.
#include <cmath>
#include <limits>

#include "products.h"
#include "tensor.h"

namespace reidops {
namespace {

constexpr int64_t kBlock = 128;

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
  int64_t batch, channels, length;
  int64_t image() const { return channels * length; }
};

Sizes check(const Tensor& query, const Tensor& key, const Tensor& value) {
  const Sizes s{query.size(0), query.size(1), query.size(2)};
  for (const Tensor* t : {&key, &value}) {
    STD_TORCH_CHECK(t->size(0) == s.batch && t->size(1) == s.channels && t->size(2) == s.length &&
                        t->scalar_type() == query.scalar_type(),
                    "query, key and value should match");
  }
  STD_TORCH_CHECK(s.channels >= 1 && s.length >= 1, "query should have channels and a length");
  return s;
}

std::tuple<Tensor, Tensor> channel_attention(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in) {
  const Tensor query = dense(query_in, 3, "query"), key = dense(key_in, 3, "key"), value = dense(value_in, 3, "value");
  const Sizes s = check(query, key, value);
  Tensor output = new_tensor({s.batch, s.channels, s.length}, query.scalar_type());
  Tensor statistics = new_tensor({s.batch, 2, s.channels}, query.scalar_type());  // maximum, 1 / sum of each row
  return with_floating_type(query, "query", [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = kernels<T>();
    const T *q = data<T>(query), *k = data<T>(key), *v = data<T>(value);
    T *out = mutable_data<T>(output), *saved = mutable_data<T>(statistics);
    const Engine<T>& engine = engine_for_values<T>({q, k, v}, s.batch * s.image());
    Right<T> keys(engine), values(engine);
    std::vector<Block<T>> blocks = blocks_for_workers(engine);
    for (int64_t b = 0; b < s.batch; ++b) {
      keys.pack_plain(k + b * s.image(), s.channels, s.length);
      values.pack_transposed(v + b * s.image(), s.length, s.channels);
      parallel_tasks(ceil_div(s.channels, kBlock), 2 * kBlock * s.image(), [&](int64_t task, int64_t worker) {
        Block<T>& block = blocks[worker];
        const int64_t c0 = b * s.channels + task * kBlock;
        const int64_t rows = std::min(kBlock, s.channels - task * kBlock);
        T* scores = block.multiply(q + c0 * s.length, rows, s.length, keys, block.scores);
        T shares[kBlock];
        for (int64_t r = 0; r < rows; ++r) {
          T* row = scores + r * keys.stride();
          T smallest = std::numeric_limits<T>::infinity(), largest = -std::numeric_limits<T>::infinity();
          kernel.extrema(row, s.channels, &smallest, &largest);
          const T sum = kernel.exponentials(row, s.channels, largest);
          shares[r] = T(1) / sum;
          T* row_saved = saved + b * 2 * s.channels + task * kBlock + r;
          row_saved[0] = largest;
          row_saved[s.channels] = shares[r];
        }
        const T* sums = block.multiply(scores, rows, keys.stride(), values, block.sums);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t l = 0; l < s.length; ++l)
            out[(c0 + r) * s.length + l] = sums[r * values.stride() + l] * shares[r];
        }
      });
    }
    return std::make_tuple(output, statistics);
  });
}

// With P = softmax rows, dP = dO V^T, delta_i = dO_i . O_i, dS = P (dP - delta):
//   dQ = dS K,  dK = dS^T Q,  dV = P^T dO.
std::tuple<Tensor, Tensor, Tensor> channel_attention_backward(const Tensor& grad_in, const Tensor& query_in,
                                                              const Tensor& key_in, const Tensor& value_in,
                                                              const Tensor& output_in, const Tensor& statistics_in) {
  const Tensor query = dense(query_in, 3, "query"), key = dense(key_in, 3, "key"), value = dense(value_in, 3, "value");
  const Tensor grad = dense(grad_in, 3, "grad"), output = dense(output_in, 3, "output"),
               statistics = dense(statistics_in, 3, "statistics");
  const Sizes s = check(query, key, value);
  check(query, grad, output);
  STD_TORCH_CHECK(statistics.size(0) == s.batch && statistics.size(1) == 2 && statistics.size(2) == s.channels &&
                      statistics.scalar_type() == query.scalar_type(),
                  "statistics should match query");
  Tensor grad_query = new_tensor({s.batch, s.channels, s.length}, query.scalar_type());
  Tensor grad_key = new_tensor({s.batch, s.channels, s.length}, query.scalar_type());
  Tensor grad_value = new_tensor({s.batch, s.channels, s.length}, query.scalar_type());
  return with_floating_type(query, "query", [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = kernels<T>();
    const int64_t channels = s.channels, length = s.length;
    const Engine<T>& engine =
        engine_for_values<T>({data<T>(query), data<T>(key), data<T>(value), data<T>(grad)}, s.batch * s.image());
    Right<T> keys(engine), keys_transposed(engine), values(engine), queries(engine), queries_transposed(engine),
        grads(engine), grads_transposed(engine);
    std::vector<Block<T>> blocks = blocks_for_workers(engine);
    std::vector<T> delta(channels);
    for (int64_t b = 0; b < s.batch; ++b) {
      const T *q = data<T>(query) + b * s.image(), *k = data<T>(key) + b * s.image(),
              *v = data<T>(value) + b * s.image();
      const T *g = data<T>(grad) + b * s.image(), *o = data<T>(output) + b * s.image(),
              *largest = data<T>(statistics) + b * 2 * channels, *share = largest + channels;
      keys.pack_plain(k, channels, length);
      values.pack_plain(v, channels, length);
      queries.pack_plain(q, channels, length);
      grads.pack_plain(g, channels, length);
      keys_transposed.pack_transposed(k, length, channels);
      queries_transposed.pack_transposed(q, length, channels);
      grads_transposed.pack_transposed(g, length, channels);
      for (int64_t c = 0; c < channels; ++c) delta[c] = kernel.dot(g + c * length, o + c * length, length);

      parallel_tasks(2 * ceil_div(channels, kBlock), 4 * kBlock * s.image(), [&](int64_t task, int64_t worker) {
        Block<T>& block = blocks[worker];
        const int64_t c0 = task / 2 * kBlock, rows = std::min(kBlock, channels - c0);
        const auto copy_out = [&](const T* from, int64_t stride, const Tensor& to) {
          T* result = mutable_data<T>(to) + b * s.image() + c0 * length;
          for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * stride, length, result + r * length);
        };
        if (task % 2 == 0) {  // rows of P: the gradient of query
          T* weights = block.multiply(q + c0 * length, rows, length, keys, block.scores);
          T* slopes = block.multiply(g + c0 * length, rows, length, values, block.slopes);
          for (int64_t r = 0; r < rows; ++r) {
            T *p = weights + r * keys.stride(), *ds = slopes + r * keys.stride();
            kernel.exponentials(p, channels, largest[c0 + r]);
            for (int64_t j = 0; j < channels; ++j) ds[j] = p[j] * share[c0 + r] * (ds[j] - delta[c0 + r]);
          }
          copy_out(block.multiply(slopes, rows, keys.stride(), keys_transposed, block.sums), keys_transposed.stride(),
                   grad_query);
        } else {  // columns of P: the gradients of key and value
          T* weights = block.multiply(k + c0 * length, rows, length, queries, block.scores);
          T* slopes = block.multiply(v + c0 * length, rows, length, grads, block.slopes);
          for (int64_t r = 0; r < rows; ++r) {
            T *p = weights + r * queries.stride(), *ds = slopes + r * queries.stride();
            for (int64_t i = 0; i < channels; ++i) p[i] -= largest[i];
            kernel.exponentials(p, channels, T(0));
            for (int64_t i = 0; i < channels; ++i) {
              p[i] *= share[i];
              ds[i] = p[i] * (ds[i] - delta[i]);
            }
          }
          copy_out(block.multiply(weights, rows, queries.stride(), grads_transposed, block.sums),
                   grads_transposed.stride(), grad_value);
          copy_out(block.multiply(slopes, rows, queries.stride(), queries_transposed, block.sums),
                   queries_transposed.stride(), grad_key);
        }
      });
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
