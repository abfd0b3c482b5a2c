// SPDX-License-Identifier: Apache-2.0
// Between two passes of a selection: one block looks at what a segment counted and chooses its next phase.
#pragma once
#include "topk_candidates.cuh"

namespace sparsekit::cuda {

// Where the rank-th largest key is among bins in memory, for all threads; rank is cut to the total, and {0, 0, 0} means
// that there is none.
template <class U>
__device__ BinRank find_in_bins(Shared<U>& shared, const Counter* bins, int64_t rank, int64_t* total) {
  constexpr int kEach = (kTopkBins + kTopkThreads - 1) / kTopkThreads;
  const int end = kTopkBins - static_cast<int>(threadIdx.x) * kEach;  // thread 0 has the highest bins
  int64_t sum = 0;
  for (int bin = end - 1; bin >= 0 && bin >= end - kEach; --bin) sum += static_cast<int64_t>(bins[bin]);
  const int64_t before = block_exclusive_sum<int64_t, kTopkThreads>(sum, total);
  if (rank > *total) rank = *total;
  if (threadIdx.x == 0) shared.found = {0, 0, 0};
  __syncthreads();
  if (before < rank && rank <= before + sum) {
    int bin = end - 1;
    for (rank -= before; rank > static_cast<int64_t>(bins[bin]); --bin) rank -= static_cast<int64_t>(bins[bin]);
    shared.found = {bin, rank, static_cast<int64_t>(bins[bin])};
  }
  __syncthreads();
  const BinRank found = shared.found;
  __syncthreads();
  return found;
}

// The tile in which the `need`-th tie is, and how many of its ties are kept.
template <class U>
__device__ void find_boundary(const Workspace<U>& w, Segment<U>& segment, int64_t need) {
  const int64_t each = (segment.tiles + kTopkThreads - 1) / kTopkThreads, first = threadIdx.x * each;
  const int64_t end = first + each < segment.tiles ? first + each : segment.tiles;
  int64_t sum = 0, total;
  for (int64_t i = first; i < end; ++i) sum += w.tiles[segment.first_tile + i].inside;
  int64_t before = block_exclusive_sum<int64_t, kTopkThreads>(sum, &total);
  if (threadIdx.x == 0 && need == 0) {
    segment.boundary = segment.first_tile;
    segment.quota = 0;
  }
  if (before < need && need <= before + sum) {
    int64_t i = segment.first_tile + first;
    for (; before + w.tiles[i].inside < need; ++i) before += w.tiles[i].inside;
    segment.boundary = i;
    segment.quota = need - before;
  }
  __syncthreads();
}

// The masks of the segment are exact.
template <class U>
__device__ void conclude(const Workspace<U>& w, Segment<U>& segment) {
  segment.phase = Phase::kDone;
  atomicAdd(&w.control->active, ~Counter{0});  // minus one
  if (w.report_nan && segment.all_nans > 0) raise_flag(w.invalid);
  if (w.warm == nullptr) return;
  const Search<SignedOf<U>>& search = segment.search;
  Bracket<SignedOf<U>> next = {0, 0};
  // A heavy key is found again by a sample, which also tells how much of it is kept.
  const bool valid = segment.among_candidates &&
                     next_bracket(search.bracket, search.range.first, segment.last_inside > search.limit / 2, &next);
  w.warm[&segment - w.segments] = {next.low, next.high, valid};
}

template <class U>
__device__ bool is_settled(const Pivot<SignedOf<U>>& pivot, int order) {
  const Range<SignedOf<U>>& range = pivot.range;
  return pivot.open || (pivot.count > 0 && (range.first == range.last || pivot.count <= (int64_t{1} << order) / 64));
}

// Takes the bin of one end of the bracket. Ends in a light range are rounded outwards, heavy keys are found exactly.
template <class U>
__device__ void narrow_pivot(Shared<U>& shared, Pivot<SignedOf<U>>& pivot, const Counter* bins, int order, bool is_low) {
  using Key = SignedOf<U>;
  const bool settled = is_settled<U>(pivot, order);
  const int64_t rank = pivot.range.rank;
  int64_t total;
  const BinRank found = find_in_bins(shared, bins, rank, &total);
  if (threadIdx.x != 0 || settled) return;
  if (rank <= total) {
    pivot.range.take(found);
    pivot.count = found.count;
  } else if (is_low) {
    pivot.open = true;
  } else {
    // Dropped NaN leave fewer numbers than wanted: all of them are kept.
    pivot.range.set(Search<Key>::kLowest, Search<Key>::kLowest, 1);
    pivot.count = 1;
  }
}

template <class U>
__device__ void choose_bracket(Segment<U>& segment) {
  using Key = SignedOf<U>;
  const Range<Key>&high = segment.high.range, &low = segment.low.range;
  const bool exact_high = high.first == high.last, exact_low = low.first == low.last;
  Search<Key>& search = segment.search;
  if (!segment.high.open && !segment.low.open && exact_high && exact_low && high.first == low.first) {
    const double size = static_cast<double>(int64_t{1} << segment.sample_order);
    const double wanted = size * static_cast<double>(search.kept) / static_cast<double>(search.numel);
    const double above = static_cast<double>(segment.sample_high - high.rank);
    const float share = static_cast<float>((wanted - above) / static_cast<double>(segment.high.count));
    search.search_bracket(Bracket<Key>::around(high.first), Source::kSampled, share);
    return;
  }
  Bracket<Key> bracket = {KeySpec<U>::kLowest, KeySpec<U>::kHighest};
  if (!segment.high.open) bracket.high = exact_high ? high.first : static_cast<Key>(high.last + 1);
  if (!segment.low.open) bracket.low = exact_low ? low.first : static_cast<Key>(low.first - 1);
  search.search_bracket(bracket, Source::kSampled, 0);
}

// The range of the candidates shrinks to the bin of the threshold: few keys are ordered, one key is settled by ties.
template <class U>
__device__ void choose_candidates(Shared<U>& shared, Segment<U>& segment, const Counter* bins) {
  int64_t total;
  const BinRank found = find_in_bins(shared, bins, segment.search.range.rank, &total);
  if (threadIdx.x != 0) return;
  Range<SignedOf<U>>& range = segment.search.range;
  range.take(found);
  segment.among_candidates = true;
  segment.gathered = 0;
  if (range.first == range.last) segment.phase = found.rank == found.count ? Phase::kScatterAll : Phase::kScatter;
  else segment.phase = found.count <= kGathered ? Phase::kGather : Phase::kCandidateBins;
}

__device__ inline bool comes_first(const Gathered& a, const Gathered& b) {
  return a.key > b.key || (a.key == b.key && a.at < b.at);
}

// Orders the gathered candidates and sets the bits of the first ones.
template <class U>
__device__ void order_gathered(Shared<U>& shared, const Workspace<U>& w, Segment<U>& segment) {
  const int count = static_cast<int>(segment.gathered);
  const Gathered* const source = w.gathered + (&segment - w.segments) * kGathered;
  int size = 1;
  while (size < count) size *= 2;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kTopkThreads) {
    shared.ordered[i] = i < count ? source[i] : Gathered{INT64_MIN, INT64_MAX};
  }
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < size; i += kTopkThreads) {
        const int other = i ^ distance;
        if (other < i) continue;
        const Gathered a = shared.ordered[i], b = shared.ordered[other];
        if (comes_first(b, a) == ((i & run) == 0)) {
          shared.ordered[i] = b;
          shared.ordered[other] = a;
        }
      }
    }
  }
  __syncthreads();
  const int kept = static_cast<int>(segment.search.range.rank);
  for (int i = static_cast<int>(threadIdx.x); i < kept; i += kTopkThreads) {
    const int64_t tile = shared.ordered[i].at / (kTileWords * kWordBits);
    uint32_t* const words = Tile<U>::of(tensor_of(w.tensors, w.tensor_count, tile), tile).words;
    set_bit<U>(words, static_cast<int>(shared.ordered[i].at - tile * kTileWords * kWordBits));
  }
  const SignedOf<U> threshold = static_cast<SignedOf<U>>(shared.ordered[kept - 1].key);
  __syncthreads();
  if (threadIdx.x == 0) segment.search.range.set(threshold, threshold, 1);
}

// After a pass over all scores the search says what comes next.
template <class U>
__device__ void follow(Shared<U>& shared, const Workspace<U>& w, Segment<U>& segment, const Counter* bins) {
  __syncthreads();
  const Step step = segment.search.step;
  const int64_t ties = segment.search.ties;
  __syncthreads();
  if (step == Step::kTies) find_boundary(w, segment, ties);
  if (step == Step::kFinish) {
    if (threadIdx.x == 0) segment.search.range.rank = ties;
    __syncthreads();
    choose_candidates(shared, segment, bins);
  } else if (threadIdx.x == 0) {
    if (step == Step::kTies) segment.phase = Phase::kTies;
    else if (step == Step::kDone) conclude(w, segment);
    else enter(segment);
  }
}

// Every thread of the block has to call it. Not inlined, for its registers would be taken from the passes.
template <class U>
__device__ __noinline__ void decide(Shared<U>& shared, const Workspace<U>& w, int64_t index) {
  Segment<U>& segment = w.segments[index];
  Counter* const bins = w.bins + index * 2 * kTopkBins;
  const Phase phase = segment.phase;
  if (phase == Phase::kDone) return;
  __syncthreads();
  if (phase == Phase::kSample) {
    narrow_pivot(shared, segment.high, bins, segment.sample_order, false);
    narrow_pivot(shared, segment.low, bins + kTopkBins, segment.sample_order, true);
    if (threadIdx.x == 0 && is_settled<U>(segment.high, segment.sample_order) &&
        is_settled<U>(segment.low, segment.sample_order)) {
      choose_bracket(segment);
      enter(segment);
    }
  } else if (phase == Phase::kScan) {
    if (threadIdx.x == 0) {
      segment.all_nans = static_cast<int64_t>(segment.nans);
      segment.last_inside = static_cast<int64_t>(segment.inside);
      segment.search.after_scan(static_cast<int64_t>(segment.above), segment.last_inside, segment.all_nans,
                                segment.overflow == 0);
    }
    follow(shared, w, segment, bins);
  } else if (phase == Phase::kBins) {
    int64_t total;
    const BinRank found = find_in_bins(shared, bins, segment.search.range.rank, &total);
    if (threadIdx.x == 0) {
      if (segment.search.before_bins(total)) segment.search.after_bins(found);
      enter(segment);
    }
  } else if (phase == Phase::kCandidateBins) {
    choose_candidates(shared, segment, bins);
  } else if (phase == Phase::kScatter) {
    find_boundary(w, segment, segment.search.range.rank);
    if (threadIdx.x == 0) segment.phase = Phase::kCandidateTies;
  } else {
    if (phase == Phase::kGather) order_gathered(shared, w, segment);
    if (threadIdx.x == 0) conclude(w, segment);
  }
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < 2 * kTopkBins; bin += kTopkThreads) bins[bin] = 0;
  __syncthreads();
}

}  // namespace sparsekit::cuda
