// Stages 1 to 3 of re-ranking with k-reciprocal encoding (Zhong 2017), sparse from the start.
//
// T = queries + gallery points, d their distances. Stages, with the memory each keeps:
//   1. nearest   one pass over the T x T distances in tiles, each pair once where they are symmetric: the n nearest of
//                each point, its row maximum                                                                 O(T k)
//   2. sets      reciprocal sets of both sizes, and their expansion                                          O(T k)
//   3. encoding  V: weights e^-d over the expanded set, then their mean over the k2 nearest                  O(T k k2)
//
// Stage 1 costs T^2 d FLOPs and dominates; what expanded sets have beyond the nearest (tens a point) is computed one by
// one.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

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
class NeighbourEncoding {
 public:
  NeighbourEncoding(TileSource<T>& source, int64_t queries, const Parameters& parameters)
      : source_(source), queries_(queries), total_(source.rows()), p_(parameters) {}

  int64_t queries() const { return queries_; }
  int64_t gallery() const { return total_ - queries_; }
  const Parameters& parameters() const { return p_; }
  TileSource<T>& source() const { return source_; }
  T row_maximum(int64_t i) const { return row_maximum_[i]; }

  // keep(tile) is given every distance of a query to the gallery, as for_each_tile gives it; columns count from the first
  // query.
  template <typename Keep>
  void build(const Keep& keep) {
    find_nearest(keep);
    encode();
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

 private:
  // Stage 1.
  template <typename Keep>
  void find_nearest(const Keep& keep) {
    near_ = std::max(p_.near_count(), p_.k2);
    NearestTable<T> nearest(total_, total_, near_);
    row_maximum_.assign(total_, T(0));
    for_each_tile(source_, 0, total_, 0, total_, source_.symmetric(), [&](int64_t, const Tile<T>& tile) {
      nearest.add(tile, 0, row_maximum_.data());
      const int64_t i1 = std::min(tile.i1, queries_), j0 = std::max(tile.j0, queries_);
      if (tile.i0 < i1 && j0 < tile.j1) {
        keep(Tile<T>{tile.i0, i1, j0, tile.j1, tile.j1, tile.values + (j0 - tile.j0), tile.stride});
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

  TileSource<T>& source_;
  const int64_t queries_, total_;
  const Parameters p_;
  int64_t near_ = 0;
  std::vector<int32_t> nearest_;  // (total, near), nearest first
  std::vector<T> near_distance_;  // theirs
  std::vector<T> row_maximum_;
  SparseRows<T> encoding_, inverted_;
};

}  // namespace reidops
