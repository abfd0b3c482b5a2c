// SPDX-License-Identifier: Apache-2.0
// What a selection on a CUDA device keeps in its workspace.
//
// A segment is one selection: all tensors together, or each of them. All segments go through rounds in step: every block
// works on tiles as the phase of their segment demands, a barrier of the grid, one block per segment decides, a barrier.
#pragma once
#include "search.h"
#include "topk_mask.h"
#include "topk_tiles.cuh"

namespace sparsekit::cuda {

constexpr int kTopkBins = 1 << SPARSEKIT_TOPK_DIGIT;
constexpr int64_t kSlack = 4 * kTopkThreads;  // so few elements are collected without a sample
constexpr int64_t kCollectShare = 16;         // and otherwise this part of them at most
constexpr int kMinSampleOrder = 8, kMaxSampleOrder = 16;
// The most candidates that one block orders by itself.
constexpr int kGathered = 4 * kTopkThreads;

using Counter = unsigned long long;

enum class Phase : int32_t {
  kSample,         // histograms of the sample, one for each end of the bracket
  kScan,           // Step::kScan
  kBins,           // Step::kBins
  kCandidateBins,  // a histogram of the candidates in the range
  kGather,         // set the bits of candidates above the range, gather those in it
  kScatter,        // set the bits of candidates above the threshold, count the equal ones of each tile
  kScatterAll,     // set the bits of candidates at or above the threshold
  kCandidateTies,  // set the bits of equal candidates up to the boundary
  kTies,           // Step::kTies
  kDone,
};

// A candidate: its key, and its bit inside its tile.
template <class U>
struct Candidate {
  SignedOf<U> key;
  uint16_t at;
};

struct Gathered {
  int64_t key, at;  // bit in the order of all tiles
};

// What a scan found in a tile, and where its candidates are.
struct TileCounts {
  uint32_t above;
  uint32_t inside;  // in Phase::kScatter: candidates equal to the threshold
  uint32_t start, stored;
};

// One end of the bracket that is narrowed in the sample.
template <class Key>
struct Pivot {
  Range<Key> range;
  int64_t count;  // sample keys in the range
  bool open;      // the sample ends before
};

template <class U>
struct Segment {
  using Key = SignedOf<U>;
  Search<Key> search;
  Phase phase;
  int64_t first_tile, tiles, first_tensor, tensors, first_candidate;
  int sample_order;
  Pivot<Key> high, low;
  int64_t sample_high;                            // rank of the upper end in the sample
  Counter above, inside, nans, stored, gathered;  // of this round
  int64_t all_nans, last_inside;
  int32_t overflow;  // some keys inside are no candidates
  int64_t whole;     // tiles that got the bits of their ties in the scan
  int64_t boundary;  // the tile that keeps its first `quota` ties; those before keep all
  int64_t quota;
  bool among_candidates;  // the threshold was found among candidates
};

struct Control {
  Counter active;  // segments that are not done
};

// Everything the kernels work on.
template <class U>
struct Workspace {
  Control* control;
  Segment<U>* segments;
  TensorEntry* tensors;
  TileCounts* tiles;
  Counter* bins;         // [segments, 2, kTopkBins]
  Gathered* gathered;    // [segments, kGathered]
  Candidate<U>* candidates;
  uint8_t* invalid;
  WarmBracket* warm;     // [segments], or null
  KeySpec<U> spec;
  int64_t segment_count, tensor_count, tile_count;
  bool report_nan, radix, keep_nan;
};

__device__ inline int64_t candidate_limit(int64_t numel) { return numel / kCollectShare + kSlack; }

// Sets the phase that the search asks for, and clears what the coming pass counts.
template <class U>
__device__ void enter(Segment<U>& segment) {
  using Key = SignedOf<U>;
  Search<Key>& search = segment.search;
  segment.above = segment.inside = segment.nans = segment.stored = segment.gathered = 0;
  if (search.step == Step::kSample) {
    segment.phase = Phase::kSample;
    const double size = static_cast<double>(int64_t{1} << segment.sample_order);
    int64_t high, low;
    sample_ranks(size, static_cast<double>(search.kept) / static_cast<double>(search.numel), &high, &low);
    segment.sample_high = high + 1;
    Range<Key> whole = search.range;
    whole.set(Search<Key>::kLowest, Search<Key>::kHighest, high + 1);
    segment.high = {whole, 0, high < 0};
    whole.rank = low + 1;
    segment.low = {whole, 0, low + 1 > (int64_t{1} << segment.sample_order)};
  } else if (search.step == Step::kScan) {
    segment.phase = Phase::kScan;
    segment.overflow = 0;
    segment.whole = search.is_single() ? static_cast<int64_t>(search.share * static_cast<float>(segment.tiles)) : 0;
    // The histogram of the candidates is made on the way.
    if (search.collect) {
      search.range.set(static_cast<Key>(search.bracket.low + 1), static_cast<Key>(search.bracket.high - 1), 0);
    }
  } else {
    segment.phase = Phase::kBins;
  }
}

// The start of a segment whose tiles, tensors and candidates are known.
template <class U>
__device__ void begin_segment(Segment<U>& segment, int64_t numel, int64_t kept, const Workspace<U>& w, int64_t index) {
  using Key = SignedOf<U>;
  Search<Key>& search = segment.search;
  segment.all_nans = 0;
  segment.among_candidates = false;
  if (numel == 0) {
    segment.phase = Phase::kDone;
    return;
  }
  int order = kMinSampleOrder;
  while (order < kMaxSampleOrder && (numel / kCollectShare) >> (order + 1) != 0) ++order;
  segment.sample_order = order;
  search.begin(numel, kept, w.keep_nan, candidate_limit(numel), SPARSEKIT_TOPK_DIGIT);
  if (w.radix) {
    search.begin_radix();
  } else if (search.step == Step::kSample && w.warm != nullptr && w.warm[index].valid != 0) {
    search.search_bracket({static_cast<Key>(w.warm[index].low), static_cast<Key>(w.warm[index].high)}, Source::kWarm, 0);
  } else if (search.step == Step::kSample && numel <= kSlack) {
    search.search_bracket({KeySpec<U>::kLowest, KeySpec<U>::kHighest}, Source::kExact, 0);
  }
  enter(segment);
}

}  // namespace sparsekit::cuda
