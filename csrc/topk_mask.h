// SPDX-License-Identifier: Apache-2.0
// Exact top-k masks of score tensors.
//
// Counts are in elements. A selection keeps the `kept` largest keys of a set; among equal keys the first in
// (tensor, flat index) order are kept. -0.0 equals 0.0, infinities are ordered normally. NaN: kDrop and kError never keep
// one (fewer than `kept` bits are set when numbers run out), kKeep takes them before +inf. The result is a function of
// the input alone, whatever the thread count and the instruction set.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dtypes.h"
#include "select.h"

namespace sparsekit {

// Scores [rows, cols], contiguous, and where the words [rows, words_per_row(cols)] of their mask go.
struct ScoreTensor {
  const void* scores;
  uint32_t* words;
  int64_t rows, cols;

  int64_t numel() const { return rows * cols; }
};

// How the threshold is searched: from a bracket of a sample, or by histograms of all scores alone.
enum class Method { kBracket, kRadix };

// Keys between which the next selection from similar scores will first look for its threshold. It saves time or costs
// one pass, and never changes a mask.
struct WarmBracket {
  int64_t low, high;
  int64_t valid;  // 0 or 1
};

struct SelectOptions {
  Dtype dtype;
  KeyKind key;
  NanPolicy nan;
  int threads;
  std::string force;  // name of an instruction path, "" for the best
  Method method = Method::kBracket;
};

// One selection over all tensors. Needs 0 <= kept <= total number of elements. Returns the number of NaN.
// warm: read if valid, and written; may be null.
int64_t topk_mask(const std::vector<ScoreTensor>& tensors, int64_t kept, const SelectOptions& options,
                  WarmBracket* warm = nullptr);

// One selection in each row. Needs 0 <= kept <= cols. Returns the number of NaN.
int64_t topk_mask_rows(const ScoreTensor& tensor, int64_t kept, const SelectOptions& options);

}  // namespace sparsekit
