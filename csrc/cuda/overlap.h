// Two streams at once: matrix products on the caller's stream, and on another one what is made of the last product, so
// that a product's last wave, which leaves multiprocessors idle, and the launches between are not lost.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include "launch.h"

namespace reidops {

// There are two buffers for the products, taken in turn. A call on the caller's stream:
//
//   for each tile: reuse(buffer); [product into buffer]; enter(); [what reads it]; leave(buffer);
//
// The caller's stream waits for the other one at the end, in the destructor: what comes after it sees all results, and
// memory may be given back. With `wanted` false everything stays on the caller's stream.
class Overlap {
 public:
  Overlap(const Tensor& like, bool wanted) : device_(like.get_device_index()), wanted_(wanted) {
    if (!wanted_) return;
    main_ = current_stream(like);
    void* side = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_get_cuda_stream_from_pool(false, device_, &side));
    side_ = static_cast<cudaStream_t>(side);
    for (cudaEvent_t& event : events_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  }
  Overlap(const Overlap&) = delete;
  Overlap& operator=(const Overlap&) = delete;
  ~Overlap() {
    if (!wanted_) return;
    if (inside_) torch_set_current_cuda_stream(main_, device_);
    if (entered_) {
      cudaEventRecord(events_[kProduct], side_);
      cudaStreamWaitEvent(main_, events_[kProduct], 0);
    }
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }

  // Before the product: the buffer has been read.
  void reuse(int buffer) {
    if (wanted_ && read_[buffer]) check(cudaStreamWaitEvent(main_, events_[buffer], 0), "overlap");
  }
  // After the product: the other stream goes on from here, and is the current one.
  void enter() {
    if (!wanted_) return;
    check(cudaEventRecord(events_[kProduct], main_), "overlap");
    check(cudaStreamWaitEvent(side_, events_[kProduct], 0), "overlap");
    STABLE_TORCH_ERROR_CODE_CHECK(torch_set_current_cuda_stream(side_, device_));
    entered_ = inside_ = true;
  }
  // The buffer is read by what has been launched since.
  void leave(int buffer) {
    if (!wanted_) return;
    check(cudaEventRecord(events_[buffer], side_), "overlap");
    read_[buffer] = true;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_set_current_cuda_stream(main_, device_));
    inside_ = false;
  }

 private:
  static constexpr int kProduct = 2;  // the last event: of the product, and of the end
  int device_;
  bool wanted_, entered_ = false, inside_ = false;
  cudaStream_t main_ = nullptr, side_ = nullptr;
  cudaEvent_t events_[3] = {};  // [buffer]: it has been read
  bool read_[2] = {false, false};
};

}  // namespace reidops
