// The stages of re-ranking with k-reciprocal encoding (Zhong 2017), sparse from the start.
//
// T = queries + gallery points, d their distances. Stages, with the memory each keeps:
//   1. nearest   one pass over the T x T distances in tiles, each pair once where they are symmetric: the n nearest of
//                each point, its row maximum                                                                 O(T k)
//   2. sets      reciprocal sets of both sizes, and their expansion                                          O(T k)
//   3. encoding  V: weights e^-d over the expanded set, then their mean over the k2 nearest                  O(T k k2)
//   4. Jaccard   s = sum of minima through an inverted index of the gallery's V                              a row a thread
//
// Stage 1 costs T^2 d FLOPs and dominates; what expanded sets have beyond the nearest (tens a point) is computed one by
// one. The topk best of a query need no second pass over its distances: a gallery image that shares nothing with it is
// 1 - lambda + lambda d away, so that only the nearest by d, kept from stage 1, and those that share something count.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <mutex>
#include <numeric>
#include <vector>

#include "../core/rank.h"
#include "../core/re_ranking.h"
#include "nearest.h"
#include "tiles.h"

namespace reidops {

// Rows of indices of varying length.
struct Sets {
  std::vector<int64_t> first;
  std::vector<int32_t> items;
  const int32_t* begin(int64_t i) const { return items.data() + first[i]; }
  int64_t size(int64_t i) const { return first[i + 1] - first[i]; }
};

// The same with a weight each: sparse rows of V.
template <typename T>
struct SparseRows {
  std::vector<int64_t> first;
  std::vector<int32_t> columns;
  std::vector<T> weights;
};

// Builds rows in parallel blocks and joins them: make(row, worker, columns, weights) appends one row. row_work: as the
// work of parallel_tasks, for a row.
template <typename T, typename Make>
SparseRows<T> build_rows(int64_t rows, int64_t row_work, const Make& make) {
  constexpr int64_t kBlock = 64;
  struct Part {
    std::vector<int64_t> sizes;
    std::vector<int32_t> columns;
    std::vector<T> weights;
  };
  std::vector<Part> parts(ceil_div(rows, kBlock));
  parallel_tasks(static_cast<int64_t>(parts.size()), kBlock * row_work, [&](int64_t task, int64_t worker) {
    Part& part = parts[task];
    for (int64_t i = task * kBlock; i < std::min(rows, (task + 1) * kBlock); ++i) {
      const size_t before = part.columns.size();
      make(i, worker, part.columns, part.weights);
      part.sizes.push_back(static_cast<int64_t>(part.columns.size() - before));
    }
  });
  SparseRows<T> joined;
  joined.first.reserve(rows + 1);
  joined.first.push_back(0);
  for (const Part& part : parts) {
    for (int64_t size : part.sizes) joined.first.push_back(joined.first.back() + size);
  }
  joined.columns.reserve(joined.first.back());
  joined.weights.reserve(joined.first.back());
  for (Part& part : parts) {
    joined.columns.insert(joined.columns.end(), part.columns.begin(), part.columns.end());
    joined.weights.insert(joined.weights.end(), part.weights.begin(), part.weights.end());
    part = Part();
  }
  return joined;
}

template <typename T>
class ReRanking {
 public:
  ReRanking(TileSource<T>& source, int64_t queries, const Parameters& parameters)
      : source_(source), queries_(queries), total_(source.rows()), p_(parameters) {}

  // The (queries, gallery) result in `out`.
  void dense(T* out) {
    find_nearest(p_.jaccard ? nullptr : out, nullptr);
    encode();
    parallel_tasks(queries_, gallery() * 16,
                   [&](int64_t i, int64_t worker) { finish_row(i, worker, out + i * gallery()); });
  }

  // The topk best of each row: what `dense` followed by a stable sort gives, to the last bit.
  void best(int64_t topk, T* distances, int64_t* indices) {
    std::vector<int64_t> open;  // queries whose best are not certain yet
    if (p_.weighs_distance()) {
      const int64_t listed = std::min(gallery(), topk + kMoreListed);
      NearestTable<T> closest(queries_, gallery(), listed);
      find_nearest(nullptr, &closest);
      encode();
      open = best_of_closest(closest, listed, topk, distances, indices);
    } else {
      find_nearest(nullptr, nullptr);
      encode();
      open.resize(queries_);
      std::iota(open.begin(), open.end(), int64_t(0));
    }
    best_of_rows(open, topk, distances, indices);
  }

 private:
  int64_t gallery() const { return total_ - queries_; }

  static constexpr int64_t kAskedAtOnce = 32;
  static constexpr int64_t kMoreListed = 16;  // beyond topk, so that the last of the best is mostly certain

  // Stage 1. Keeps the queries' distances to the gallery in query_gallery when it is given, their nearest gallery images
  // in `closest` when that is given.
  void find_nearest(T* query_gallery, NearestTable<T>* closest) {
    near_ = std::max(p_.near_count(), p_.k2);
    NearestTable<T> nearest(total_, total_, near_);
    row_maximum_.assign(total_, T(0));
    for_each_tile(source_, 0, total_, 0, total_, source_.symmetric(), [&](int64_t, const Tile<T>& tile) {
      nearest.add(tile, 0, row_maximum_.data());
      const int64_t i1 = std::min(tile.i1, queries_), j0 = std::max(tile.j0, queries_);
      if (tile.i0 >= i1 || j0 >= tile.j1) return;
      const Tile<T> part{tile.i0, i1, j0, tile.j1, tile.j1, tile.values + (j0 - tile.j0), tile.stride};
      if (closest != nullptr) closest->add(part, queries_);
      if (query_gallery == nullptr) return;
      for (int64_t i = part.i0; i < i1; ++i) {
        std::copy_n(part.row(i), part.j1 - j0, query_gallery + i * gallery() + j0 - queries_);
      }
    });
    nearest_.resize(total_ * near_);
    near_distance_.resize(total_ * near_);
    parallel_ranges(total_, 64 * near_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int32_t* row = nearest_.data() + i * near_;
        // Distances that are not numbers leave gaps; the point itself stands in for them.
        for (int64_t r = nearest.finish(i, near_distance_.data() + i * near_, row); r < near_; ++r) {
          row[r] = static_cast<int32_t>(i);
          near_distance_[i * near_ + r] = source_.pair(i, i);
        }
      }
    });
  }

  // Stage 2a: R(i, count), the points among the `count` nearest of i that have i among theirs; ascending.
  Sets reciprocal_sets(int64_t count) const {
    std::vector<int32_t> sorted(total_ * count);
    parallel_ranges(total_, 64 * count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto row = sorted.begin() + i * count;
        std::copy_n(nearest_.begin() + i * near_, count, row);
        std::sort(row, row + count);
      }
    });
    auto rows =
        build_rows<T>(total_, 16 * count, [&](int64_t i, int64_t, std::vector<int32_t>& columns, std::vector<T>&) {
          for (int64_t r = 0; r < count; ++r) {
            const int32_t j = sorted[i * count + r];
            if (r > 0 && j == sorted[i * count + r - 1]) continue;
            const auto theirs = sorted.begin() + int64_t(j) * count;
            if (std::binary_search(theirs, theirs + count, static_cast<int32_t>(i))) columns.push_back(j);
          }
        });
    return {std::move(rows.first), std::move(rows.columns)};
  }

  // Stages 2b and 3.
  void encode() {
    const Sets whole = reciprocal_sets(p_.near_count()), half = reciprocal_sets(p_.half_count());
    struct Worker {
      std::vector<char> mark;      // 1: in the set of i itself, 2: joined by a candidate's set
      std::vector<int32_t> place;  // among the nearest of i, from 1
    };
    std::vector<Worker> workers(num_workers());
    encoding_ = build_rows<T>(
        total_, 4096, [&](int64_t i, int64_t worker, std::vector<int32_t>& columns, std::vector<T>& weights) {
          std::vector<char>& mark = workers[worker].mark;
          std::vector<int32_t>& place = workers[worker].place;
          mark.resize(total_, 0);
          place.resize(total_, 0);
          const int32_t* own = whole.begin(i);
          const int64_t own_size = whole.size(i);
          const size_t start = columns.size();
          columns.insert(columns.end(), own, own + own_size);
          for (int64_t c = 0; c < own_size; ++c) mark[own[c]] = 1;
          for (int64_t c = 0; c < own_size; ++c) {
            const int32_t* other = half.begin(own[c]);
            const int64_t other_size = half.size(own[c]);
            const int64_t shared = std::count_if(other, other + other_size, [&](int32_t g) { return mark[g] == 1; });
            if (!joins(shared, other_size)) continue;
            for (int64_t g = 0; g < other_size; ++g) {
              if (mark[other[g]] != 0) continue;
              mark[other[g]] = 2;
              columns.push_back(other[g]);
            }
          }
          for (size_t c = start; c < columns.size(); ++c) mark[columns[c]] = 0;
          std::sort(columns.begin() + start, columns.end());
          // Weights e^-d normalised to 1, shifted by the smallest d so that far points do not vanish together.
          T nearest = std::numeric_limits<T>::infinity(), sum = T(0);
          const int32_t* near = nearest_.data() + i * near_;
          for (int32_t r = 0; r < near_; ++r) place[near[r]] = r + 1;
          for (size_t c = start; c < columns.size(); ++c) {
            const int32_t r = place[columns[c]];
            const T d = r > 0 ? near_distance_[i * near_ + r - 1] : source_.pair(i, columns[c]);
            weights.push_back(p_.scaled(d, row_maximum_[i]));
            nearest = std::min(nearest, weights[c]);
          }
          for (int32_t r = 0; r < near_; ++r) place[near[r]] = 0;
          for (size_t c = start; c < columns.size(); ++c) sum += weights[c] = std::exp(nearest - weights[c]);
          for (size_t c = start; c < columns.size(); ++c) weights[c] /= sum;
        });
    if (p_.k2 > 1) average_neighbours();
    invert();
  }

  // Query expansion: V_i <- mean of V over the k2 nearest of i.
  void average_neighbours() {
    struct Worker {
      std::vector<T> sums;
      std::vector<char> touched;
    };
    std::vector<Worker> workers(num_workers());
    const T share = T(1) / static_cast<T>(p_.k2);
    SparseRows<T> mean = build_rows<T>(
        total_, 1024 * p_.k2, [&](int64_t i, int64_t worker, std::vector<int32_t>& columns, std::vector<T>& weights) {
          Worker& w = workers[worker];
          w.sums.resize(total_, T(0));
          w.touched.resize(total_, 0);
          const size_t start = columns.size();
          for (int64_t r = 0; r < p_.k2; ++r) {
            const int64_t j = nearest_[i * near_ + r];
            for (int64_t c = encoding_.first[j]; c < encoding_.first[j + 1]; ++c) {
              const int32_t column = encoding_.columns[c];
              if (!w.touched[column]) columns.push_back(column);
              w.touched[column] = 1;
              w.sums[column] += encoding_.weights[c];
            }
          }
          std::sort(columns.begin() + start, columns.end());
          for (size_t c = start; c < columns.size(); ++c) {
            weights.push_back(w.sums[columns[c]] * share);
            w.sums[columns[c]] = T(0);
            w.touched[columns[c]] = 0;
          }
        });
    encoding_ = std::move(mean);
  }

  // The gallery's rows of V by column: who has a weight there.
  void invert() {
    inverted_.first.assign(total_ + 1, 0);
    const int64_t begin = encoding_.first[queries_], end = encoding_.first[total_];
    for (int64_t c = begin; c < end; ++c) ++inverted_.first[encoding_.columns[c] + 1];
    for (int64_t g = 0; g < total_; ++g) inverted_.first[g + 1] += inverted_.first[g];
    inverted_.columns.resize(end - begin);
    inverted_.weights.resize(end - begin);
    std::vector<int64_t> next(inverted_.first.begin(), inverted_.first.end() - 1);
    for (int64_t j = queries_; j < total_; ++j) {
      for (int64_t c = encoding_.first[j]; c < encoding_.first[j + 1]; ++c) {
        const int64_t at = next[encoding_.columns[c]]++;
        inverted_.columns[at] = static_cast<int32_t>(j - queries_);
        inverted_.weights[at] = encoding_.weights[c];
      }
    }
  }

  // shared[j] += the sum of the minima of the weights of query i and gallery image j; first(j) before j's first one.
  template <typename First>
  void add_shared(int64_t i, std::vector<T>& shared, const First& first) const {
    for (int64_t c = encoding_.first[i]; c < encoding_.first[i + 1]; ++c) {
      const T weight = encoding_.weights[c];
      const int32_t column = encoding_.columns[c];
      for (int64_t at = inverted_.first[column]; at < inverted_.first[column + 1]; ++at) {
        T& sum = shared[inverted_.columns[at]];
        if (sum == T(0)) first(inverted_.columns[at]);
        sum += std::min(weight, inverted_.weights[at]);
      }
    }
  }

  // Stage 4 for query i: row comes with d, where it counts, and leaves with the result.
  void finish_row(int64_t i, int64_t worker, T* row) {
    std::vector<T>& shared = workers_[worker].shared;
    shared.assign(gallery(), T(0));
    add_shared(i, shared, [](int32_t) {});
    const T row_maximum = row_maximum_[i];
    for (int64_t j = 0; j < gallery(); ++j) {
      row[j] = p_.final_distance(shared[j], p_.jaccard ? T(0) : row[j], row_maximum);
    }
  }

  // Stage 4 for the topk best of each query, from its `listed` closest gallery images and those that share a neighbour
  // with it. Returns the queries for which an image left out could be as near as the last of the best.
  std::vector<int64_t> best_of_closest(NearestTable<T>& closest, int64_t listed, int64_t topk, T* distances,
                                       int64_t* indices) {
    std::vector<int64_t> open;
    std::mutex open_lock;
    parallel_tasks(queries_, 1 << 16, [&](int64_t i, int64_t worker) {
      Worker& w = workers_[worker];
      w.shared.resize(gallery(), T(0));
      w.touched.clear();
      add_shared(i, w.shared, [&](int32_t j) { w.touched.push_back(j); });
      std::vector<T> near_distance(listed);
      std::vector<int32_t> near(listed);
      const int64_t found = closest.finish(i, near_distance.data(), near.data());
      // Images that are not listed are at least as far as the last that is.
      const T beyond = found == listed ? near_distance[found - 1] : std::numeric_limits<T>::infinity();
      const T row_maximum = row_maximum_[i];
      std::vector<Candidate> candidates;
      for (int64_t r = 0; r < found; ++r) {
        candidates.push_back({p_.final_distance(w.shared[near[r]], near_distance[r], row_maximum), near[r]});
        w.shared[near[r]] = T(-1);  // seen
      }
      // Those that are not listed but share something, the most first: until what is left cannot be near enough.
      w.heap.clear();
      for (int32_t j : w.touched) {
        if (w.shared[j] >= T(0)) w.heap.push_back({-w.shared[j], j});
      }
      std::make_heap(w.heap.begin(), w.heap.end(), std::greater<>());
      bool begun = false;
      while (!w.heap.empty()) {
        T enough = std::numeric_limits<T>::infinity();
        if (static_cast<int64_t>(candidates.size()) >= topk) {
          std::nth_element(candidates.begin(), candidates.begin() + (topk - 1), candidates.end());
          enough = candidates[topk - 1].distance;
        }
        w.asked.clear();
        while (!w.heap.empty() && static_cast<int64_t>(w.asked.size()) < kAskedAtOnce) {
          const Candidate most = w.heap.front();
          if (p_.final_distance(-most.distance, beyond, row_maximum) > enough) {
            w.heap.clear();
            break;
          }
          w.asked.push_back(static_cast<int32_t>(most.index + queries_));
          std::pop_heap(w.heap.begin(), w.heap.end(), std::greater<>());
          w.heap.pop_back();
        }
        if (w.asked.empty()) break;
        if (!begun) source_.begin_rows(worker, i, i + 1);
        begun = true;
        T asked_distance[kAskedAtOnce];
        source_.gather(worker, w.asked.data(), static_cast<int64_t>(w.asked.size()), asked_distance);
        for (size_t a = 0; a < w.asked.size(); ++a) {
          const int64_t j = w.asked[a] - queries_;
          candidates.push_back({p_.final_distance(w.shared[j], asked_distance[a], row_maximum), j});
        }
      }
      for (int64_t r = 0; r < found; ++r) w.shared[near[r]] = T(0);
      for (int32_t j : w.touched) w.shared[j] = T(0);
      const bool all = static_cast<int64_t>(candidates.size()) >= topk;
      if (all) {
        std::partial_sort(candidates.begin(), candidates.begin() + topk, candidates.end());
        for (int64_t r = 0; r < topk; ++r) {
          distances[i * topk + r] = candidates[r].distance;
          indices[i * topk + r] = candidates[r].index;
        }
      }
      const T left_out = p_.final_distance(T(0), beyond, row_maximum);  // at the least
      if (all && found == listed && (listed == gallery() || left_out > candidates[topk - 1].distance)) return;
      const std::lock_guard<std::mutex> locked(open_lock);
      open.push_back(i);
    });
    std::sort(open.begin(), open.end());
    return open;
  }

  // The topk best of the given queries from whole rows, made a block of queries at a time.
  void best_of_rows(const std::vector<int64_t>& open, int64_t topk, T* distances, int64_t* indices) {
    const int64_t block =
        std::clamp<int64_t>((int64_t(64) << 20) / (gallery() * static_cast<int64_t>(sizeof(T))), 64, queries_ + 64);
    Scratch<T> rows;
    for (size_t next = 0; next < open.size();) {
      const int64_t begin = open[next];
      size_t last = next;
      while (last + 1 < open.size() && open[last + 1] < begin + block) ++last;
      const int64_t end = open[last] + 1;
      T* block_rows = rows.reserve(std::min(block, queries_) * gallery());
      if (p_.weighs_distance()) {
        for_each_tile(source_, begin, end, queries_, total_, false, [&](int64_t, const Tile<T>& tile) {
          for (int64_t i = tile.i0; i < tile.i1; ++i) {
            std::copy_n(tile.row(i), tile.j1 - tile.j0, block_rows + (i - begin) * gallery() + tile.j0 - queries_);
          }
        });
      } else {
        std::fill_n(block_rows, (end - begin) * gallery(), T(0));
      }
      parallel_tasks(static_cast<int64_t>(last + 1 - next), gallery() * 16, [&](int64_t task, int64_t worker) {
        const int64_t i = open[next + task];
        T* row = block_rows + (i - begin) * gallery();
        finish_row(i, worker, row);
        std::vector<Candidate> candidates(gallery());
        for (int64_t j = 0; j < gallery(); ++j) candidates[j] = {rankable(row[j]), j};
        std::partial_sort(candidates.begin(), candidates.begin() + topk, candidates.end());
        for (int64_t r = 0; r < topk; ++r) {
          distances[i * topk + r] = candidates[r].distance;
          indices[i * topk + r] = candidates[r].index;
        }
      });
      next = last + 1;
    }
  }

  struct Candidate {
    T distance;
    int64_t index;
    bool operator<(const Candidate& o) const { return ranks_before(distance, index, o.distance, o.index); }
    bool operator>(const Candidate& o) const { return o < *this; }
  };
  struct Worker {
    std::vector<T> shared;
    std::vector<int32_t> touched, asked;
    std::vector<Candidate> heap;
  };

  TileSource<T>& source_;
  const int64_t queries_, total_;
  const Parameters p_;
  const Kernels<T>& kernel_ = kernels<T>();
  int64_t near_ = 0;
  std::vector<int32_t> nearest_;  // (total, near), nearest first
  std::vector<T> near_distance_;  // theirs
  std::vector<T> row_maximum_;
  SparseRows<T> encoding_, inverted_;
  std::vector<Worker> workers_ = std::vector<Worker>(num_workers());
};

}  // namespace reidops
