// The k nearest columns of every row of a tile source, and the rows' largest distances.
#pragma once

#include "nearest_kernels.cuh"
#include "tiles.h"

namespace reidops {

constexpr int64_t kSortedBytes = int64_t(256) << 20;  // distances of the rows that are sorted at once

template <typename T>
struct ClearLists {
  Neighbor<T>* lists;  // (points, k)
  int64_t k;
  __device__ void operator()(int64_t point, int64_t r) const { lists[point * k + r] = nobody<T>(); }
};

// Rows of sorted distances and their columns, as torch sorts them, NaN last, into lists.
template <typename T>
struct TakeSorted {
  const T* distances;      // (rows, columns)
  const int64_t* indices;  // (rows, columns)
  int64_t columns, k;
  Neighbor<T>* lists;  // (rows, k)
  T* maximum;          // (rows,) or null
  __device__ void operator()(int64_t row, int64_t r) const {
    const T* at = distances + row * columns + r;
    const T d = *at;
    if (r < k) lists[row * k + r] = {d, static_cast<int32_t>(indices[row * columns + r])};
    if (r < k && !(d == d)) lists[row * k + r] = nobody<T>();
    // The last number of the row is its largest.
    if (maximum != nullptr && d == d && (r + 1 == columns || !(at[1] == at[1]))) maximum[row] = d;
  }
};

// lists: (points, k) sorted neighbours, with nobody() in the gaps that distances which are not numbers leave.
template <typename T>
class NearestLists {
 public:
  NearestLists(int64_t points, int64_t k, const Tensor& like) : points_(points), k_(k), like_(like) {
    memory_ = new_tensor({points * k * static_cast<int64_t>(sizeof(Neighbor<T>))}, ScalarType::Byte, like);
    clear();
  }

  Neighbor<T>* get() const { return reinterpret_cast<Neighbor<T>*>(memory_.mutable_data_ptr()); }
  int64_t k() const { return k_; }
  bool streams() const { return k_ <= kMostNearest; }  // longer lists do not fit in shared memory

  void clear() { launch_elements("nearest", like_, points_, k_, ClearLists<T>{get(), k_}); }

  // A tile of rows `first_row`, ... and columns `first_column`, ..., whose rows are points of these lists; from column
  // `from` of the tile on the columns are too. maximum: (points,) or null.
  void add(const Tile<T>& tile, int64_t first_row, int64_t rows, int64_t first_column, int64_t columns, int64_t from,
           T* maximum) {
    int threads = kNearestThreads;
    const auto bytes = [&] {
      return threads / kWarp *
             ((k_ + kPending) * static_cast<int64_t>(sizeof(Neighbor<T>)) +
              2 * kTurnedPitch * static_cast<int64_t>(sizeof(T)));
    };
    while (threads > kWarp && bytes() > kPlainSharedBytes) threads /= 2;
    const int64_t row_blocks = ceil_div(rows, threads / kWarp);
    const int64_t blocks = row_blocks + ceil_div(columns - from, threads / kWarp);
    const auto side = [&](int64_t first, int64_t count, int64_t others, int64_t first_id, int64_t point) {
      return NearestSide<T>{
          first, count, others, first_id, get() + point * k_, maximum == nullptr ? nullptr : maximum + point};
    };
    launch("nearest", nearest_kernel<T>, dim3(std::min(blocks, kMaxBlocks)), threads, bytes(), kPlainSharedBytes,
           current_stream(like_), tile, side(0, rows, columns, first_column, first_row), row_blocks,
           side(from, columns - from, rows, first_row, first_column + from), blocks, static_cast<int>(k_));
  }

  // All distances of the first `rows` points: (at least rows, columns).
  void add_all(Tensor& distances, int64_t rows, T* maximum) {
    const int64_t columns = distances.size(1);
    if (streams()) {
      add({data<T>(distances), columns, nullptr, nullptr, 1, 1}, 0, rows, 0, columns, columns, maximum);
    } else {
      take_sorted(distances, 0, rows, maximum);
    }
  }

  // The same for points `first`, ..., by sorting whole rows.
  void take_sorted(Tensor& distances, int64_t first, int64_t rows, T* maximum) {
    const auto [sorted, order] = stable_sort(torch::stable::narrow(distances, 0, 0, rows));
    launch_elements("nearest", like_, rows, distances.size(1),
                    TakeSorted<T>{data<T>(sorted), data<int64_t>(order), distances.size(1), k_, get() + first * k_,
                                  maximum == nullptr ? nullptr : maximum + first});
  }

 private:
  int64_t points_, k_;
  Tensor like_, memory_;
};

// visit(i0, i1, j0, j1, tile) sees every tile on its way. symmetric: rows and columns are the same points; then each
// pair is made once and seen from both sides. maximum: (rows,), zeros on entry, or null.
template <typename T, typename Visit>
void find_nearest(TileSource<T>& source, bool symmetric, NearestLists<T>& lists, T* maximum, const Tensor& like,
                  const Visit& visit) {
  const int64_t rows = source.rows(), columns = source.columns();
  if (lists.streams()) {
    for_each_tile(source, 0, rows, 0, columns, symmetric, like,
                  [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, const Tile<T>& tile) {
                    visit(i0, i1, j0, j1, tile);
                    // The block on the diagonal has both sides in its rows.
                    const int64_t from = symmetric ? std::clamp(i1, j0, j1) - j0 : j1 - j0;
                    lists.add(tile, i0, i1 - i0, j0, j1 - j0, from, maximum);
                  });
    return;
  }
  // Lists longer than shared memory holds: whole rows, sorted.
  const int64_t block = std::clamp<int64_t>(kSortedBytes / (columns * static_cast<int64_t>(sizeof(T))), 1, rows);
  Tensor distances = new_tensor({block, columns}, like.scalar_type(), like);
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t end = std::min(rows, begin + block);
    T* const out = mutable_data<T>(distances);
    for_each_tile(source, begin, end, 0, columns, false, like,
                  [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, const Tile<T>& tile) {
                    visit(i0, i1, j0, j1, tile);
                    launch_elements("nearest", like, i1 - i0, j1 - j0,
                                    CopyTile<T>{tile, out + (i0 - begin) * columns + j0, columns});
                  });
    lists.take_sorted(distances, begin, end - begin, maximum);
  }
}

// Into tensors (rows, k) of distances and int64 indices; gaps are at infinity, index 0.
template <typename T>
struct TakeNeighbors {
  const Neighbor<T>* lists;  // (rows, k)
  int64_t k;
  T* distances;
  int64_t* indices;
  __device__ void operator()(int64_t row, int64_t r) const {
    const Neighbor<T> neighbor = lists[row * k + r];
    distances[row * k + r] = neighbor.distance;
    indices[row * k + r] = neighbor.index == std::numeric_limits<int32_t>::max() ? 0 : neighbor.index;
  }
};

}  // namespace reidops
