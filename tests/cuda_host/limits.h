// The limits of launch.h as the tests set them, so that small inputs take the paths of large ones.
#pragma once

#include "../../csrc/cuda/launch.h"

#define kMaxBlocks (::machine::limits().max_blocks)
#define kScratchBytes (::machine::limits().scratch_bytes)
#define scratch_blocks(blocks, bytes) \
  std::min<int64_t>(blocks, std::max<int64_t>(1, ::machine::limits().scratch_bytes / (bytes)))
