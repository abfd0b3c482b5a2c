// SPDX-License-Identifier: Apache-2.0
// The two local steps of a selection whose elements lie in several processes: histograms of keys, by which the processes
// find the threshold together, and the mask of a threshold that is known. Order, ties and NaN as in topk_mask.h.
#pragma once
#include <cstdint>
#include <vector>

#include "topk_mask.h"

namespace sparsekit {

// Bin b holds the keys whose distance above `first` is in [b << shift, (b + 1) << shift).
struct KeyBins {
  int64_t first;  // between the lowest and the highest key
  int shift;
  int64_t count;  // 1 to kBins
};

// Writes counts [tensors, bins.count]: how many keys of each tensor are in each bin; others are not counted.
void key_histogram(const std::vector<ScoreTensor>& tensors, const KeyBins& bins, const SelectOptions& options, int64_t* counts);

// Writes all words: the bits of keys above the threshold, and in tensor i of the first ties[i] keys equal to it.
// The threshold is between the lowest and the highest key.
void mask_at_threshold(const std::vector<ScoreTensor>& tensors, int64_t threshold, const std::vector<int64_t>& ties,
                       const SelectOptions& options);

}  // namespace sparsekit
