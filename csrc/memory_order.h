// SPDX-License-Identifier: Apache-2.0
// Masks of channels-last weights in the order in which the elements lie in memory, where all else is as if contiguous.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace sparsekit {

// The words [rows, words_per_row(cols)] of the same mask with bit p * (cols / spatial) + c where `words` have c * spatial + p;
// the padding bits are zero. `force` as in lanes.h: "scalar" takes no special instructions.
std::vector<uint32_t> in_memory_order(const uint32_t* words, int64_t rows, int64_t cols, int64_t spatial, int threads,
                                      const std::string& force);

// Gives every tensor with spatial > 1 words in memory order, which `own` keeps, and spatial = 1.
template <class Tensor>
void order_by_memory(std::vector<Tensor>& tensors, std::vector<std::vector<uint32_t>>& own, int threads,
                     const std::string& force) {
  own.reserve(tensors.size());
  for (Tensor& tensor : tensors) {
    if (tensor.spatial == 1) continue;
    own.push_back(in_memory_order(tensor.words, tensor.rows, tensor.cols, tensor.spatial, threads, force));
    tensor.words = own.back().data();
    tensor.spatial = 1;
  }
}

}  // namespace sparsekit
