// Re-ranking with k-reciprocal encoding on the device, from the nearest neighbours of each point to the final
// distances. Its kernels are in re_ranking_sets.cuh and re_ranking_jaccard.cuh.
//
// Rows of V differ in length. They go into memory for the longest that can be, where that is 16 kScratchBytes (1 GB) or
// less: the default k1 = 20 and k2 = 6 stay below up to a quarter of a million points, and then nothing waits for the
// device. Beyond it the rows are made twice, first to count them, and the host reads the sum: such a call cannot be
// captured in a CUDA graph.
#pragma once

#include <optional>

#include "re_ranking_jaccard.cuh"

namespace reidops {

// Pair: in_warp(i, j) is the distance of two points, computed by a warp.
template <typename T, typename Pair>
class ReRanking {
 public:
  // nearest: (total, near) sorted neighbours, near = max(near_count(), k2), with nobody() in the gaps that distances
  // which are not numbers leave; not read any more afterwards. row_maximum: (total,), not read for "jaccard". Points
  // 0 .. queries - 1 are the queries, the others the gallery. like: any tensor of the data's type and device.
  ReRanking(const Neighbor<T>* nearest, int64_t near, const Tensor& row_maximum, const Pair& pair, int64_t queries,
            int64_t total, const Parameters& parameters, const Tensor& like)
      : p_(parameters),
        near_(near),
        queries_(queries),
        total_(total),
        row_maximum_(row_maximum),
        like_(like),
        stream_(current_stream(like)) {
    const Tensor indices = new_tensor({total_, near_}, ScalarType::Int, like_);
    launch_elements("k_reciprocal", like_, 1, total_ * near_,
                    TakeIndices<T>{nearest, near_, mutable_data<int32_t>(indices)});
    const int64_t longest = std::min(total_, p_.near_count() * (1 + most_joined(p_.half_count())));
    encoding_ = encode(nearest, indices, pair, longest);
    if (p_.k2 > 1) encoding_ = average(indices, std::min(total_, p_.k2 * longest));
    invert();
  }

  // rows: (end - begin, gallery) for the queries [begin, end), `stride` apart. They come with the original distances
  // (but for "jaccard") and leave with the result.
  void finish(int64_t begin, int64_t end, T* rows, int64_t stride) const {
    const int64_t gallery = total_ - queries_;
    const int64_t segments = ceil_div(gallery, kSegmentBytes / static_cast<int64_t>(sizeof(T)));
    const int64_t segment = ceil_div(gallery, segments);
    const int64_t blocks = std::min((end - begin) * segments, kMaxBlocks);
    if (blocks == 0) return;
    launch("k_reciprocal", jaccard_kernel<T>, dim3(blocks), kJaccardThreads, segment * static_cast<int64_t>(sizeof(T)),
           kPlainSharedBytes, stream_, encoding_->view(), lists_->view(), data<T>(row_maximum_), p_, begin, end - begin,
           gallery, segment, rows, stride);
  }

 private:
  struct OwnedSets {
    Tensor members, sizes;

    OwnedSets(int64_t total, int64_t count, const Tensor& like)
        : members(new_tensor({total, count}, ScalarType::Int, like)),
          sizes(new_tensor({total}, ScalarType::Int, like)) {}
    Sets view() const {
      return {mutable_data<int32_t>(members), mutable_data<int32_t>(sizes), static_cast<int>(members.size(1))};
    }
  };

  // The memory of SparseRows.
  struct Rows {
    Tensor first, sizes, used;
    std::optional<Tensor> columns, weights;
    int64_t capacity;

    SparseRows<T> view() const {
      return {mutable_data<int64_t>(first), mutable_data<int32_t>(sizes),
              columns ? mutable_data<int32_t>(*columns) : nullptr, weights ? mutable_data<T>(*weights) : nullptr,
              reinterpret_cast<unsigned long long*>(mutable_data<int64_t>(used))};
    }
  };

  // The memory of Inverted.
  struct Lists {
    Tensor first, sizes, used, entries;

    Inverted<T> view() const {
      return {mutable_data<int64_t>(first), mutable_data<int32_t>(sizes),
              static_cast<Entry<T>*>(entries.mutable_data_ptr()),
              reinterpret_cast<unsigned long long*>(mutable_data<int64_t>(used))};
    }
  };

  Tensor zeros(int64_t count, ScalarType type) const {
    Tensor t = new_tensor({count}, type, like_);
    return torch::stable::zero_(t);
  }

  // A launch with a warp a point.
  template <typename... Arguments, typename... Parameters>
  void launch_points(void (*kernel)(Parameters...), int64_t points, Arguments... arguments) const {
    launch("k_reciprocal", kernel, dim3(point_blocks(points)), kPointThreads, 0, 0, stream_, arguments...);
  }
  static int64_t point_blocks(int64_t points) { return std::min(ceil_div(points, kPointWarps), kMaxBlocks); }

  // Rows of up to `longest` columns; make(scratch, rows, blocks) launches the kernel. weighted: it puts together
  // weights as well as columns.
  template <typename Make>
  Rows make_rows(int64_t longest, bool weighted, const Make& make) const {
    constexpr int64_t kWeightBytes = sizeof(int32_t) + sizeof(T);
    const int64_t blocks = scratch_blocks(point_blocks(total_), kPointWarps * longest * kWeightBytes);
    const int64_t elements = blocks * kPointWarps * longest;
    const Tensor scratch_columns = new_tensor({elements}, ScalarType::Int, like_);
    const Scratch scratch_weights(weighted ? elements : 0, like_);
    const RowScratch<T> scratch{mutable_data<int32_t>(scratch_columns), scratch_weights.template get<T>(), longest};
    Rows rows{new_tensor({total_}, ScalarType::Long, like_),
              new_tensor({total_}, ScalarType::Int, like_),
              zeros(1, ScalarType::Long),
              std::nullopt,
              std::nullopt,
              total_ * longest};
    if (rows.capacity > 16 * kScratchBytes / kWeightBytes) {
      make(scratch, rows.view(), blocks);
      rows.capacity = std::max<int64_t>(read(rows.used), 1);
      rows.used = zeros(1, ScalarType::Long);
    }
    rows.columns = new_tensor({rows.capacity}, ScalarType::Int, like_);
    rows.weights = new_tensor({rows.capacity}, like_.scalar_type(), like_);
    make(scratch, rows.view(), blocks);
    return rows;
  }

  // Waits for the device.
  static int64_t read(const Tensor& number) {
    return *data<int64_t>(torch::stable::to(number, torch::stable::Device(torch::headeronly::DeviceType::CPU)));
  }

  Rows encode(const Neighbor<T>* nearest, Tensor indices, const Pair& pair, int64_t longest) const {
    const int64_t count = p_.near_count();
    const auto [members, places] = stable_sort(torch::stable::contiguous(torch::stable::narrow(indices, 1, 0, count)));
    const SortedLists lists{data<int32_t>(members), data<int64_t>(places), static_cast<int>(count)};
    const OwnedSets whole(total_, count, like_), half(total_, p_.half_count(), like_);
    launch_points(reciprocal_sets_kernel, total_, lists, total_, whole.view(), half.view());
    Rows rows = make_rows(longest, false, [&](const RowScratch<T>& scratch, const SparseRows<T>& rows, int64_t blocks) {
      launch("k_reciprocal", expand_kernel<T>, dim3(blocks), kPointThreads, 0, 0, stream_, whole.view(), half.view(),
             total_, scratch, rows);
    });
    launch_points(weigh_kernel<T, Pair>, total_, nearest, near_, data<T>(row_maximum_), lists, total_, p_, pair,
                  rows.view());
    return rows;
  }

  Rows average(const Tensor& indices, int64_t longest) const {
    return make_rows(longest, true, [&](const RowScratch<T>& scratch, const SparseRows<T>& rows, int64_t blocks) {
      launch("k_reciprocal", mean_kernel<T>, dim3(blocks), kPointThreads, 0, 0, stream_, data<int32_t>(indices), total_,
             near_, p_.k2, encoding_->view(), scratch, rows);
    });
  }

  void invert() {
    const int64_t entry_bytes = sizeof(Entry<T>);
    lists_ =
        Lists{new_tensor({total_}, ScalarType::Long, like_), zeros(total_, ScalarType::Int), zeros(1, ScalarType::Long),
              new_tensor({encoding_->capacity * entry_bytes}, ScalarType::Byte, like_)};
    const SparseRows<T> rows = encoding_->view();
    const Inverted<T> lists = lists_->view();
    launch_points(count_lists_kernel<T>, total_ - queries_, rows, queries_, total_, lists);
    launch_points(place_lists_kernel<T>, ceil_div(total_, kWarp), total_, lists);
    launch_points(fill_lists_kernel<T>, total_ - queries_, rows, queries_, total_, lists);
  }

  const Parameters p_;
  const int64_t near_, queries_, total_;
  const Tensor row_maximum_, like_;
  const cudaStream_t stream_;
  std::optional<Rows> encoding_;
  std::optional<Lists> lists_;
};

}  // namespace reidops
