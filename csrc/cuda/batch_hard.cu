// batch_hard: each anchor's farthest sample of its label and nearest of another (Hermans 2017), from features or from
// given distances. Ties: the lowest index.
//
// A training batch is small: one kernel, a block an anchor, makes its distances from the differences, exact near 0, and
// selects. 64 x 2,048: 25 million FLOPs and 0.5 MB that each block reads from the L2 cache, 34 MB in all: 7 us at 5 TB/s.
// A large one is made of tiles (tiles.h), each pair once: 65,536 x 2,048 is 8.8e12 FLOPs, 22 ms in TF32, and a read of
// 8.6 GB of tiles from the L2 cache; nothing of size B x B is kept.
#include "hardest_kernels.cuh"
#include "tiles.h"

namespace reidops {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The results' four tensors and their pointers.
template <typename T>
struct Output {
  Tensor positive, negative, positive_index, negative_index;

  Output(int64_t batch, const Tensor& like)
      : positive(new_tensor({batch}, like.scalar_type(), like)),
        negative(new_tensor({batch}, like.scalar_type(), like)),
        positive_index(new_tensor({batch}, ScalarType::Long, like)),
        negative_index(new_tensor({batch}, ScalarType::Long, like)) {}
  Mined<T> pointers() const {
    return {mutable_data<T>(positive), mutable_data<T>(negative), mutable_data<int64_t>(positive_index),
            mutable_data<int64_t>(negative_index)};
  }
  Result tuple() const { return {positive, negative, positive_index, negative_index}; }
};

constexpr int64_t kDirectBytes = int64_t(192) << 20;  // read in all by the blocks of the one-kernel form: about 40 us

template <typename T>
void mine_in_tiles(const Rows<T>& features, const Tensor& labels, Format format, const Mined<T>& out,
                   const Tensor& like) {
  const int64_t batch = features.count;
  EuclideanTiles<T> tiles(features, features, format, like);
  const Tensor memory = new_tensor({batch * static_cast<int64_t>(sizeof(Hardest<T>))}, ScalarType::Byte, like);
  const auto hardest = reinterpret_cast<Hardest<T>*>(memory.mutable_data_ptr());
  launch_elements("batch_hard", like, 1, batch, ClearHardest<T>{hardest});
  for_each_tile(
      tiles, 0, batch, 0, batch, true, like, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, const Tile<T>& tile) {
        add_rows(tile, i0, i1 - i0, j0, j1 - j0, data<int64_t>(labels), hardest, like);
        const int64_t from = std::max(j0, i1);  // the block on the diagonal has both sides in its rows
        add_columns(tile.from_column(from - j0), i0, i1 - i0, from, j1 - from, data<int64_t>(labels), hardest, like);
      });
  finish_mining(features, hardest, out, like);
}

Result batch_hard(const Tensor& features_in, const Tensor& labels_in, std::string precision, bool /*refuse*/) {
  check_input(features_in, 2, "features");
  const int64_t batch = features_in.size(0), d = features_in.size(1);
  STD_TORCH_CHECK(batch >= 1 && d >= 1, "features should not be empty");
  STD_TORCH_CHECK(batch < std::numeric_limits<int32_t>::max(), "features should have fewer than 2^31 rows");
  check_int64(labels_in, batch, features_in, "labels");
  const DeviceGuard guard(features_in.get_device_index());
  return with_floating_type(features_in, "features", [&](auto zero) {
    using T = decltype(zero);
    const Format format = product_format<T>(precision);
    const Tensor features = torch::stable::contiguous(features_in), labels = torch::stable::contiguous(labels_in);
    const Rows<T> rows{data<T>(features), batch, d};
    const Output<T> out(batch, features);
    if (batch * d * static_cast<int64_t>(sizeof(T)) <= kDirectBytes / batch) {
      mine_directly(rows, data<int64_t>(labels), out.pointers(), features);
    } else {
      mine_in_tiles(rows, labels, format, out.pointers(), features);
    }
    return out.tuple();
  });
}

Result batch_hard_from_distance(const Tensor& distance_in, const Tensor& labels_in) {
  check_input(distance_in, 2, "distance");
  const int64_t batch = distance_in.size(0);
  STD_TORCH_CHECK(batch >= 1 && distance_in.size(1) == batch, "distance should be square and not empty");
  check_int64(labels_in, batch, distance_in, "labels");
  const DeviceGuard guard(distance_in.get_device_index());
  return with_floating_type(distance_in, "distance", [&](auto zero) {
    using T = decltype(zero);
    const Tensor distance = torch::stable::contiguous(distance_in), labels = torch::stable::contiguous(labels_in);
    const Output<T> out(batch, distance);
    const int64_t blocks = std::min(ceil_div(batch, kSelectThreads / kWarp), kMaxBlocks);
    launch("batch_hard_from_distance", batch_hard_from_distance_kernel<T>, dim3(blocks), kSelectThreads, 0, 0,
           current_stream(distance), data<T>(distance), data<int64_t>(labels), batch, out.pointers());
    return out.tuple();
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) {
  m.impl("batch_hard", TORCH_BOX(&batch_hard));
  m.impl("batch_hard_from_distance", TORCH_BOX(&batch_hard_from_distance));
}

}  // namespace reidops
