// SPDX-License-Identifier: Apache-2.0
// Exact top-k masks on a CUDA device: the contract of topk_mask.h, with device pointers. The functions launch on `stream`
// of `device`, do not synchronise, allocate nothing, can be captured in a graph, and return a cudaError code.
#pragma once
#include <cstdint>
#include <vector>

#include "topk_mask.h"

namespace sparsekit::cuda {

struct TopkOutputs {
  uint8_t* invalid;    // one byte: 1 if the policy kError met a NaN, else 0
  WarmBracket* warm;   // one for each selection, read if valid and written; may be null
  void* workspace;
  int64_t workspace_bytes;
};

// Bytes of workspace for topk_mask on such tensors.
int64_t topk_workspace(const std::vector<ScoreTensor>& scores, bool per_tensor, Dtype dtype);

// One selection of kept[0] elements over all tensors, or one of kept[i] in each tensor.
// max_blocks: limit of the grid, 0 for none; it does not change the result.
int topk_mask(const std::vector<ScoreTensor>& scores, const std::vector<int64_t>& kept, bool per_tensor,
              const SelectOptions& options, const TopkOutputs& outputs, int64_t max_blocks, int device, uintptr_t stream);

// One selection of `kept` elements in each row. Sets *invalid to 1 if the policy kError met a NaN, else leaves it.
int topk_mask_rows(const ScoreTensor& scores, int64_t kept, const SelectOptions& options, uint8_t* invalid, int device,
                   uintptr_t stream);

}  // namespace sparsekit::cuda
