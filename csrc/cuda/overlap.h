// Two streams at once: matrix products on the caller's stream, and on another one what is made of the last product, so
// that a product's last wave, which leaves multiprocessors idle, and the launches between are not lost.
#pragma once

#include "launch.h"

namespace reidops {

// This thread's second stream on the current device, made once.
inline cudaStream_t side_stream(int device) {
  cudaStream_t& stream = thread_streams().side[device];
  if (stream == nullptr) {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // a capture under way does not mind
    check(cudaThreadExchangeStreamCaptureMode(&mode), "stream");
    const cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    check(cudaThreadExchangeStreamCaptureMode(&mode), "stream");
    check(error, "stream");
  }
  return stream;
}

// There are two buffers for the products, taken in turn. A call on the caller's stream:
//
//   for each tile: reuse(buffer); [product into buffer]; enter(); [what reads it]; leave(buffer);
//
// Between enter() and leave() launches go to the other stream; torch's own current stream stays the caller's, so nothing
// of torch's may be called there. The caller's stream waits for the other one at the end, in the destructor: what comes
// after it sees all results, and memory may be given back. With `wanted` false everything stays on the caller's stream.
class Overlap {
 public:
  Overlap(const Tensor& like, bool wanted) : wanted_(wanted) {
    if (!wanted_) return;
    main_ = current_stream(like);
    side_ = side_stream(like.get_device_index());
    for (cudaEvent_t& event : events_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  }
  Overlap(const Overlap&) = delete;
  Overlap& operator=(const Overlap&) = delete;
  ~Overlap() {
    if (!wanted_) return;
    thread_streams().launch = nullptr;
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
  // After the product: the other stream goes on from here.
  void enter() {
    if (!wanted_) return;
    check(cudaEventRecord(events_[kProduct], main_), "overlap");
    check(cudaStreamWaitEvent(side_, events_[kProduct], 0), "overlap");
    thread_streams().launch = side_;
    entered_ = true;
  }
  // The buffer is read by what has been launched since.
  void leave(int buffer) {
    if (!wanted_) return;
    thread_streams().launch = nullptr;
    check(cudaEventRecord(events_[buffer], side_), "overlap");
    read_[buffer] = true;
  }

 private:
  static constexpr int kProduct = 2;  // the last event: of the product, and of the end
  bool wanted_, entered_ = false;
  cudaStream_t main_ = nullptr, side_ = nullptr;
  cudaEvent_t events_[3] = {};  // [buffer]: it has been read
  bool read_[2] = {false, false};
};

}  // namespace reidops
