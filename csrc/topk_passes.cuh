// SPDX-License-Identifier: Apache-2.0
// The passes of a selection over scores: what every block does with a tile, by the phase of its segment.
#pragma once
#include "sampled_bracket.h"
#include "topk_compare.cuh"
#include "topk_state.cuh"

namespace sparsekit::cuda {

template <class U>
struct Shared {
  static constexpr int kStaged = 16384 / static_cast<int>(sizeof(Candidate<U>)) * kTopkThreads / 256;
  uint32_t bins[kTopkBins];
  union {
    Candidate<U> staged[kStaged];
    uint32_t low_bins[kTopkBins];
    Gathered ordered[kGathered];
    uint32_t bitmap[kTileWords];
  };
  int64_t segment;  // whose keys the bins count; -1 for none
  unsigned staged_count, counts, nans, start, kept;
  BinRank found;
};

// Adds the block's bins to those of the segment.
template <class U>
__device__ void flush_bins(Shared<U>& shared, const Workspace<U>& w, bool low_too) {
  __syncthreads();
  if (shared.segment >= 0) {
    Counter* const target = w.bins + shared.segment * 2 * kTopkBins;
    for (int bin = static_cast<int>(threadIdx.x); bin < kTopkBins; bin += kTopkThreads) {
      if (shared.bins[bin] != 0) atomicAdd(&target[bin], static_cast<Counter>(shared.bins[bin]));
      shared.bins[bin] = 0;
      if (!low_too) continue;
      if (shared.low_bins[bin] != 0) atomicAdd(&target[kTopkBins + bin], static_cast<Counter>(shared.low_bins[bin]));
      shared.low_bins[bin] = 0;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) shared.segment = -1;
  __syncthreads();
}

// From here on the bins count keys of this segment.
template <class U>
__device__ void count_for(Shared<U>& shared, const Workspace<U>& w, int64_t segment, bool low_too) {
  if (shared.segment != segment && shared.segment >= 0) flush_bins(shared, w, low_too);
  __syncthreads();
  if (threadIdx.x == 0) shared.segment = segment;
}

// The key of sample number i of a segment: one in each equal part of its elements, scattered inside the part.
template <bool kMagnitude, class U>
__device__ SignedOf<U> sample_key(const Workspace<U>& w, const Segment<U>& segment, int64_t i) {
  const int64_t numel = segment.search.numel;
  const uint64_t part = static_cast<uint64_t>(numel >> segment.sample_order);
  const uint64_t scatter = (static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u) >> 32;
  const int64_t at = ((i * numel) >> segment.sample_order) + static_cast<int64_t>((scatter * part) >> 32);
  int64_t low = segment.first_tensor;
  for (int64_t high = low + segment.tensors; high - low > 1;) {
    const int64_t middle = (low + high) / 2;
    if (w.tensors[middle].first_element <= at) low = middle;
    else high = middle;
  }
  const U* const scores = static_cast<const U*>(w.tensors[low].scores);
  return w.spec.template of<kMagnitude>(load(scores + at - w.tensors[low].first_element));
}

// Histograms of the samples of all segments that are in this phase; the blocks share the samples of each.
template <bool kMagnitude, class U>
__device__ void sample_pass(Shared<U>& shared, const Workspace<U>& w) {
  for (int64_t s = 0; s < w.segment_count; ++s) {
    const Segment<U>& segment = w.segments[s];
    const int64_t size = int64_t{1} << segment.sample_order;
    // Small samples begin at different blocks.
    const int64_t block = (blockIdx.x + s) % gridDim.x;
    if (segment.phase != Phase::kSample || block * kTopkThreads >= size) continue;
    for (int bin = static_cast<int>(threadIdx.x); bin < kTopkBins; bin += kTopkThreads) shared.low_bins[bin] = 0;
    count_for(shared, w, s, true);
    __syncthreads();
    for (int64_t i = block * kTopkThreads + threadIdx.x; i < size; i += thread_count()) {
      const SignedOf<U> key = sample_key<kMagnitude>(w, segment, i);
      if (segment.high.range.holds(key)) atomicAdd(&shared.bins[segment.high.range.bin(key)], 1u);
      if (segment.low.range.holds(key)) atomicAdd(&shared.low_bins[segment.low.range.bin(key)], 1u);
    }
    flush_bins(shared, w, true);
  }
}

// Puts the keys inside the bracket on the block's list.
template <bool kMagnitude, class U>
__device__ void stage(Shared<U>& shared, const Workspace<U>& w, const Tile<U>& tile, int word, uint32_t inside) {
  const unsigned count = static_cast<unsigned>(__popc(inside)), up_to = warp_inclusive_sum(count);
  unsigned base = 0;
  if (lane_id() == kWarp - 1) base = atomicAdd(&shared.staged_count, up_to);
  base = __shfl_sync(kAll, base, kWarp - 1) + up_to - count;
  if (inside == 0) return;
  int valid;
  const int64_t element = tile.element(word, &valid);
  for (; inside != 0 && base < Shared<U>::kStaged; inside &= inside - 1, ++base) {
    const int bit = __ffs(static_cast<int>(inside)) - 1;
    // The score was read a moment ago, so this access does not leave the processor's cache.
    const SignedOf<U> key = w.spec.template of<kMagnitude>(load(tile.scores + element + bit));
    shared.staged[base] = {key, static_cast<uint16_t>(word * kWordBits + bit)};
  }
}

// After the shots of a tile: its counts, and room for its candidates.
template <class U>
__device__ void account(Shared<U>& shared, const Workspace<U>& w, Segment<U>& segment, int64_t tile) {
  const unsigned above = shared.counts & 0xffffu, inside = shared.counts >> 16, staged = shared.staged_count;
  atomicAdd(&segment.above, static_cast<Counter>(above));
  atomicAdd(&segment.inside, static_cast<Counter>(inside));
  if (shared.nans != 0) atomicAdd(&segment.nans, static_cast<Counter>(shared.nans));
  bool fits = staged <= static_cast<unsigned>(Shared<U>::kStaged);
  Counter start = 0;
  if (fits && staged > 0) {
    start = atomicAdd(&segment.stored, static_cast<Counter>(staged));
    fits = start + staged <= static_cast<Counter>(segment.search.limit);
  }
  if (!fits) atomicOr(&segment.overflow, 1);
  shared.start = static_cast<unsigned>(start);
  shared.kept = fits ? staged : 0;
  w.tiles[tile] = {above, inside, shared.start, shared.kept};
}

template <bool kMagnitude, class U>
__device__ void scan_tile(Shared<U>& shared, const Workspace<U>& w, const TensorEntry& tensor, int64_t number) {
  Segment<U>& segment = w.segments[tensor.segment];
  const Tile<U> tile = Tile<U>::of(tensor, number);
  const bool collect = segment.search.collect, with_ties = number - segment.first_tile < segment.whole;
  if (collect) count_for(shared, w, tensor.segment, false);
  if (threadIdx.x == 0) shared.staged_count = shared.counts = shared.nans = 0;
  __syncthreads();
  unsigned counts = 0, nans = 0;
#pragma unroll 1
  for (int shot = 0; shot < kShots; ++shot) {
    const int first = shot * kShotWords + warp_id() * kWarp, word = first + lane_id();
    if (first >= tile.count) break;
    const ShotBits bits = classify<kMagnitude>(tile, first, w.spec, segment.search.bracket);
    if (word < tile.count) tile.words[word] = with_ties ? bits.above | bits.inside : bits.above;
    counts += static_cast<unsigned>(__popc(bits.above)) + (static_cast<unsigned>(__popc(bits.inside)) << 16);
    nans += static_cast<unsigned>(bits.nans);
    if (collect && __any_sync(kAll, bits.inside != 0)) stage<kMagnitude>(shared, w, tile, word, bits.inside);
  }
  counts = __reduce_add_sync(kAll, counts);
  nans = __reduce_add_sync(kAll, nans);
  if (lane_id() == 0) {
    atomicAdd(&shared.counts, counts);
    if (nans != 0) atomicAdd(&shared.nans, nans);
  }
  __syncthreads();
  if (threadIdx.x == 0) account(shared, w, segment, number);
  __syncthreads();
  Candidate<U>* const target = w.candidates + segment.first_candidate + shared.start;
  for (unsigned i = threadIdx.x; i < shared.kept; i += kTopkThreads) {
    target[i] = shared.staged[i];
    atomicAdd(&shared.bins[segment.search.range.bin(shared.staged[i].key)], 1u);
  }
  __syncthreads();
}

// Counts the keys of the range.
template <bool kMagnitude, class U>
__device__ void bins_tile(Shared<U>& shared, const Workspace<U>& w, const TensorEntry& tensor, int64_t number) {
  const Tile<U> tile = Tile<U>::of(tensor, number);
  const Range<SignedOf<U>> range = w.segments[tensor.segment].search.range;
  count_for(shared, w, tensor.segment, false);
  __syncthreads();
  const auto count = [&](U bits) {
    const SignedOf<U> key = w.spec.template of<kMagnitude>(bits);
    if (range.holds(key)) atomicAdd(&shared.bins[range.bin(key)], 1u);
  };
#pragma unroll 1
  for (int shot = 0; shot < kShots; ++shot) {
    const int first = shot * kShotWords + warp_id() * kWarp;
    if (tile.is_wide(first)) {
      for_wide(tile, first, [&](U bits, int) { count(bits); });
      continue;
    }
    for (int word = first; word < first + kWarp && word < tile.count; ++word) {
      int valid;
      const int64_t at = tile.element(word, &valid);
      if (lane_id() < valid) count(load(tile.scores + at + lane_id()));
    }
  }
}

// Leaves the bits of the ties that are kept; tiles that have the right ones already are passed over.
template <bool kMagnitude, class U>
__device__ void ties_tile(const Workspace<U>& w, const TensorEntry& tensor, int64_t number) {
  const Segment<U>& segment = w.segments[tensor.segment];
  const int64_t inside = w.tiles[number].inside;
  const int64_t written = number - segment.first_tile < segment.whole ? inside : 0;
  int64_t left = number < segment.boundary ? inside : number == segment.boundary ? segment.quota : 0;
  if (left == written) return;
  const Tile<U> tile = Tile<U>::of(tensor, number);
#pragma unroll 1
  for (int shot = 0; shot < kShots; ++shot) {
    const int first = shot * kShotWords + warp_id() * kWarp, word = first + lane_id();
    ShotBits bits = {0, 0, 0};
    if (first < tile.count) bits = classify<kMagnitude>(tile, first, w.spec, segment.search.bracket);
    int total;
    const int before = block_exclusive_sum<int, kTopkThreads>(__popc(bits.inside), &total);
    if (word < tile.count) tile.words[word] = bits.above | lowest_set_bits(bits.inside, left - before);
    left -= total;
  }
}

}  // namespace sparsekit::cuda
