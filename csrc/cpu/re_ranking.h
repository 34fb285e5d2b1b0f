// Stage 4 of re-ranking with k-reciprocal encoding (Zhong 2017): Jaccard distances, and the final ones with them.
//
// s = sum of minima of two rows of V, through an inverted index of the gallery's: a row a thread. The topk best of a query
// need no second pass over its distances: a gallery image that shares nothing with it is 1 - lambda + lambda d away, so
// that only the nearest by d, kept from stage 1, and those that share something count.
#pragma once

#include <functional>
#include <limits>
#include <mutex>
#include <numeric>
#include <vector>

#include "../core/rank.h"
#include "neighbour_encoding.h"

namespace reidops {

template <typename T>
class ReRanking {
 public:
  ReRanking(TileSource<T>& source, int64_t queries, const Parameters& parameters)
      : encoding_(source, queries, parameters), p_(encoding_.parameters()) {}

  // The (queries, gallery) result in `out`.
  void dense(T* out) {
    encoding_.build([&](const Tile<T>& tile) {
      for (int64_t i = tile.i0; !p_.jaccard && i < tile.i1; ++i) {
        std::copy_n(tile.row(i), tile.j1 - tile.j0, out + i * gallery() + tile.j0 - queries());
      }
    });
    parallel_tasks(queries(), gallery() * 16,
                   [&](int64_t i, int64_t worker) { finish_row(i, worker, out + i * gallery()); });
  }

  // The topk best of each row: what `dense` followed by a stable sort gives, to the last bit.
  void best(int64_t topk, T* distances, int64_t* indices) {
    std::vector<int64_t> open;  // queries whose best are not certain yet
    if (p_.weighs_distance()) {
      const int64_t listed = std::min(gallery(), topk + kMoreListed);
      NearestTable<T> closest(queries(), gallery(), listed);
      encoding_.build([&](const Tile<T>& tile) { closest.add(tile, queries()); });
      open = best_of_closest(closest, listed, topk, distances, indices);
    } else {
      encoding_.build([](const Tile<T>&) {});
      open.resize(queries());
      std::iota(open.begin(), open.end(), int64_t(0));
    }
    best_of_rows(open, topk, distances, indices);
  }

 private:
  static constexpr int64_t kAskedAtOnce = 32;
  static constexpr int64_t kMoreListed = 16;  // beyond topk, so that the last of the best is mostly certain

  int64_t queries() const { return encoding_.queries(); }
  int64_t gallery() const { return encoding_.gallery(); }
  TileSource<T>& source() const { return encoding_.source(); }

  // Stage 4 for query i: row comes with d, where it counts, and leaves with the result.
  void finish_row(int64_t i, int64_t worker, T* row) {
    std::vector<T>& shared = workers_[worker].shared;
    shared.assign(gallery(), T(0));
    encoding_.add_shared(i, shared, [](int32_t) {});
    const T row_maximum = encoding_.row_maximum(i);
    for (int64_t j = 0; j < gallery(); ++j) {
      row[j] = p_.final_distance(shared[j], p_.jaccard ? T(0) : row[j], row_maximum);
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
    std::vector<int32_t> touched, near, asked;
    std::vector<T> near_distance;
    std::vector<Candidate> candidates, sharing;
  };

  // Stage 4 for the topk best of each query, from its `listed` closest gallery images and those that share a neighbour
  // with it. Returns the queries for which an image left out could be as near as the last of the best.
  std::vector<int64_t> best_of_closest(NearestTable<T>& closest, int64_t listed, int64_t topk, T* distances,
                                       int64_t* indices) {
    std::vector<int64_t> open;
    std::mutex open_lock;
    parallel_tasks(queries(), 1 << 16, [&](int64_t i, int64_t worker) {
      Worker& w = workers_[worker];
      w.shared.resize(gallery(), T(0));
      w.touched.clear();
      encoding_.add_shared(i, w.shared, [&](int32_t j) { w.touched.push_back(j); });
      w.near.resize(listed);
      w.near_distance.resize(listed);
      w.near.resize(closest.finish(i, w.near_distance.data(), w.near.data()));
      const bool full = static_cast<int64_t>(w.near.size()) == listed;
      // Images that are not listed are at least as far as the last that is.
      const T beyond = full ? w.near_distance.back() : std::numeric_limits<T>::infinity();
      w.candidates.clear();
      for (size_t r = 0; r < w.near.size(); ++r) {
        T& shared = w.shared[w.near[r]];
        w.candidates.push_back({p_.final_distance(shared, w.near_distance[r], encoding_.row_maximum(i)), w.near[r]});
        shared = T(-1);  // seen
      }
      add_sharing(i, worker, topk, beyond);
      for (int32_t j : w.near) w.shared[j] = T(0);
      for (int32_t j : w.touched) w.shared[j] = T(0);
      if (static_cast<int64_t>(w.candidates.size()) >= topk) {
        write_best(w.candidates, topk, distances + i * topk, indices + i * topk);
        const T left_out = p_.final_distance(T(0), beyond, encoding_.row_maximum(i));  // at the least
        if (full && (listed == gallery() || left_out > distances[i * topk + topk - 1])) return;
      }
      const std::lock_guard<std::mutex> locked(open_lock);
      open.push_back(i);
    });
    std::sort(open.begin(), open.end());
    return open;
  }

  // Adds to the candidates what shares something with query i and is not among them, the most first, until what is left
  // cannot be near enough. beyond: how far these images are at the least.
  void add_sharing(int64_t i, int64_t worker, int64_t topk, T beyond) {
    Worker& w = workers_[worker];
    const T row_maximum = encoding_.row_maximum(i);
    w.sharing.clear();
    for (int32_t j : w.touched) {
      if (w.shared[j] >= T(0)) w.sharing.push_back({-w.shared[j], j});
    }
    std::make_heap(w.sharing.begin(), w.sharing.end(), std::greater<>());
    for (bool begun = false; !w.sharing.empty(); begun = true) {
      T enough = std::numeric_limits<T>::infinity();
      if (static_cast<int64_t>(w.candidates.size()) >= topk) {
        std::nth_element(w.candidates.begin(), w.candidates.begin() + (topk - 1), w.candidates.end());
        enough = w.candidates[topk - 1].distance;
      }
      w.asked.clear();
      while (!w.sharing.empty() && static_cast<int64_t>(w.asked.size()) < kAskedAtOnce) {
        const Candidate most = w.sharing.front();
        if (p_.final_distance(-most.distance, beyond, row_maximum) > enough) {
          w.sharing.clear();
          break;
        }
        w.asked.push_back(static_cast<int32_t>(most.index + queries()));
        std::pop_heap(w.sharing.begin(), w.sharing.end(), std::greater<>());
        w.sharing.pop_back();
      }
      if (w.asked.empty()) return;
      if (!begun) source().begin_rows(worker, i, i + 1);
      T distance[kAskedAtOnce];
      source().gather(worker, w.asked.data(), static_cast<int64_t>(w.asked.size()), distance);
      for (size_t a = 0; a < w.asked.size(); ++a) {
        const int64_t j = w.asked[a] - queries();
        w.candidates.push_back({p_.final_distance(w.shared[j], distance[a], row_maximum), j});
      }
    }
  }

  static void write_best(std::vector<Candidate>& candidates, int64_t topk, T* distances, int64_t* indices) {
    std::partial_sort(candidates.begin(), candidates.begin() + topk, candidates.end());
    for (int64_t r = 0; r < topk; ++r) {
      distances[r] = candidates[r].distance;
      indices[r] = candidates[r].index;
    }
  }

  // The topk best of the given queries from whole rows, made a block of queries at a time.
  void best_of_rows(const std::vector<int64_t>& open, int64_t topk, T* distances, int64_t* indices) {
    const int64_t block =
        std::clamp<int64_t>((int64_t(64) << 20) / (gallery() * static_cast<int64_t>(sizeof(T))), 64, queries() + 64);
    Scratch<T> rows;
    for (size_t next = 0; next < open.size();) {
      const int64_t begin = open[next];
      size_t last = next;
      while (last + 1 < open.size() && open[last + 1] < begin + block) ++last;
      const int64_t end = open[last] + 1;
      T* block_rows = rows.reserve(std::min(block, queries()) * gallery());
      if (p_.weighs_distance()) {
        for_each_tile(source(), begin, end, queries(), queries() + gallery(), false, [&](int64_t, const Tile<T>& tile) {
          for (int64_t i = tile.i0; i < tile.i1; ++i) {
            std::copy_n(tile.row(i), tile.j1 - tile.j0, block_rows + (i - begin) * gallery() + tile.j0 - queries());
          }
        });
      } else {
        std::fill_n(block_rows, (end - begin) * gallery(), T(0));
      }
      parallel_tasks(static_cast<int64_t>(last + 1 - next), gallery() * 16, [&](int64_t task, int64_t worker) {
        const int64_t i = open[next + task];
        T* row = block_rows + (i - begin) * gallery();
        finish_row(i, worker, row);
        std::vector<Candidate>& candidates = workers_[worker].candidates;
        candidates.resize(gallery());
        for (int64_t j = 0; j < gallery(); ++j) candidates[j] = {rankable(row[j]), j};
        write_best(candidates, topk, distances + i * topk, indices + i * topk);
      });
      next = last + 1;
    }
  }

  NeighbourEncoding<T> encoding_;
  const Parameters& p_;
  std::vector<Worker> workers_ = std::vector<Worker>(num_workers());
};

}  // namespace reidops
