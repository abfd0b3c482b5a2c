// SPDX-License-Identifier: Apache-2.0
// Work units of a selection: stretches of mask words of one tensor, and the streaming pass over one of them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "lanes.h"
#include "pack_bits.h"
#include "topk_mask.h"

namespace sparsekit {

constexpr int64_t kBlockWords = 2048;
constexpr int64_t kRunWords = 128;

// Words [first, last) of a tensor.
struct Block {
  ScoreTensor tensor;
  int64_t first, last;
};

// Appends the blocks of a tensor, in order.
inline void cut_blocks(ScoreTensor tensor, std::vector<Block>* blocks) {
  if (tensor.numel() == 0) return;
  // Rows without padding bits follow each other like one row.
  if (tensor.cols % kWordBits == 0) tensor = {tensor.scores, tensor.words, 1, tensor.numel()};
  const int64_t words = tensor.rows * words_per_row(tensor.cols);
  for (int64_t first = 0; first < words; first += kBlockWords) {
    blocks->push_back({tensor, first, std::min(words, first + kBlockWords)});
  }
}

// Calls visit(scores, words, count, valid) for consecutive stretches of the block: `count` words with 32 elements each, or
// one word with `valid` < 32 elements.
template <class U, class Visit>
void for_each_stretch(const Block& block, const Visit& visit) {
  const int64_t cols = block.tensor.cols, per_row = words_per_row(cols), full = cols / kWordBits;
  const U* const scores = static_cast<const U*>(block.tensor.scores);
  int64_t row = block.first / per_row, in_row = block.first % per_row;
  for (int64_t word = block.first; word < block.last;) {
    const U* const source = scores + row * cols + in_row * kWordBits;
    const bool partial = in_row == full;
    const int64_t count = partial ? 1 : std::min({full - in_row, block.last - word, kRunWords});
    visit(source, block.tensor.words + word, count, partial ? cols % kWordBits : int64_t{kWordBits});
    word += count;
    in_row += count;
    if (in_row == per_row) {
      in_row = 0;
      ++row;
    }
  }
}

// Classifies every key of the block: visit(words, count, above, inside, scores). Padding bits are zero. Returns the NaN count.
template <class U, class Visit>
int64_t classify_block(const Block& block, ClassifyFn<U> classify, const KeySpec<U>& spec, Bracket<SignedOf<U>> bracket,
                       const Visit& visit) {
  int64_t nans = 0;
  uint32_t above[kRunWords], inside[kRunWords];
  for_each_stretch<U>(block, [&](const U* scores, uint32_t* words, int64_t count, int64_t valid) {
    if (valid == kWordBits) {
      nans += classify(scores, count, spec, bracket, above, inside);
    } else {
      U padded[kWordBits] = {};
      std::copy(scores, scores + valid, padded);
      nans += classify(padded, 1, spec, bracket, above, inside);
      above[0] &= valid_bits(valid);
      inside[0] &= valid_bits(valid);
    }
    visit(words, count, above, inside, scores);
  });
  return nans;
}

}  // namespace sparsekit
