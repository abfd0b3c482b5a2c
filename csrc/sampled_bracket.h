// SPDX-License-Identifier: Apache-2.0
// A bracket of keys that very likely holds the threshold of a selection, from a small sample of the scores.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "select.h"
#include "topk_mask.h"

namespace sparsekit {

// The sample has about n^(2/3) keys, which balances its cost with that of the candidates; never above 2^18.
constexpr int kMaxOrder = 18;
// Standard deviations of the sample rank on either side of the wanted rank; a miss costs time, never exactness.
constexpr double kMargin = 4.0;

// Keys at 2^order positions, one in each equal part of the elements, scattered inside the part against periodic scores.
template <class U>
std::vector<SignedOf<U>> draw_sample(const std::vector<ScoreTensor>& tensors, int64_t numel, int order, const KeySpec<U>& spec) {
  std::vector<SignedOf<U>> sample(size_t{1} << order);
  const uint64_t part = static_cast<uint64_t>(numel >> order);
  size_t index = 0;
  int64_t start = 0;
  for (size_t i = 0; i < sample.size(); ++i) {
    const uint64_t scatter = (i * 0x9E3779B97F4A7C15u) >> 32;
    const int64_t at = static_cast<int64_t>(((i * static_cast<uint64_t>(numel)) >> order) + ((scatter * part) >> 32));
    while (at - start >= tensors[index].numel()) start += tensors[index++].numel();
    sample[i] = spec(static_cast<const U*>(tensors[index].scores)[at - start]);
  }
  return sample;
}

// A bracket, and for one that holds a single key the part of the equal keys that will probably be kept.
template <class Key>
struct Sampled {
  Bracket<Key> bracket;
  float share;
};

// The ranks in a sample of `size` that are kMargin standard deviations above and below the wanted one; < 0 and >= size
// where the sample ends before.
SPARSEKIT_BOTH void sample_ranks(double size, double share, int64_t* high, int64_t* low) {
  const double margin = 1.0 + kMargin * sqrt(size * share * (1.0 - share));
  *high = static_cast<int64_t>(floor(size * share - margin));
  *low = static_cast<int64_t>(ceil(size * share + margin));
}

// The sample keys at those ranks for `kept` of `numel`. A key at both ends is heavy: the bracket holds it alone then.
template <class U>
Sampled<SignedOf<U>> sampled_bracket(const std::vector<ScoreTensor>& tensors, int64_t numel, int64_t kept,
                                     const KeySpec<U>& spec) {
  using Key = SignedOf<U>;
  const int order = std::min(kMaxOrder, static_cast<int>(std::log2(numel) * 2 / 3 + 0.5));
  std::vector<Key> sample = draw_sample(tensors, numel, order, spec);
  const int64_t size = static_cast<int64_t>(sample.size());
  const double share = static_cast<double>(kept) / static_cast<double>(numel);
  int64_t high, low;
  sample_ranks(static_cast<double>(size), share, &high, &low);
  Bracket<Key> bracket{KeySpec<U>::kLowest, KeySpec<U>::kHighest};
  auto start = sample.begin();
  if (high >= 0) {
    start += high;
    std::nth_element(sample.begin(), start, sample.end(), std::greater<>());
    // Never the lowest key, which dropped NaN have.
    bracket.high = std::max(*start, static_cast<Key>(KeySpec<U>::kLowest + 1));
  }
  if (low < size) {
    const auto end = sample.begin() + low;
    std::nth_element(start, end, sample.end(), std::greater<>());
    bracket.low = *end;
  }
  if (bracket.low != bracket.high) return {bracket, 0};
  const Key heavy = bracket.low;
  const int64_t above = std::count_if(sample.begin(), sample.end(), [=](Key key) { return key > heavy; });
  const int64_t equal = std::count(sample.begin(), sample.end(), heavy);
  const double need = share * static_cast<double>(size) - static_cast<double>(above);
  return {Bracket<Key>::around(heavy), static_cast<float>(need / static_cast<double>(equal))};
}

}  // namespace sparsekit
