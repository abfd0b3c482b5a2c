// SPDX-License-Identifier: Apache-2.0
// The passes of a selection over its candidates: one warp for each tile.
#pragma once
#include "topk_passes.cuh"

namespace sparsekit::cuda {

// Adds one to a bin in memory for every lane with `wanted`; lanes that agree with the first one do it together, because
// a heavy key would queue up at its bin.
__device__ inline void count_in_memory(Counter* bins, bool wanted, int64_t bin) {
  const unsigned lanes = __ballot_sync(kAll, wanted);
  if (lanes == 0) return;
  const int leader = __ffs(static_cast<int>(lanes)) - 1;
  const int64_t common = __shfl_sync(kAll, bin, leader);
  const unsigned same = __ballot_sync(kAll, wanted && bin == common);
  if (lane_id() == leader) atomicAdd(&bins[common], static_cast<Counter>(__popc(same)));
  else if (wanted && bin != common) atomicAdd(&bins[bin], Counter{1});
}

template <class U>
__device__ void set_bit(uint32_t* words, int at) {
  atomicOr(&words[word_of(at)], one_bit(bit_of(at)));
}

template <class U>
__device__ void candidates_of_tile(const Workspace<U>& w, Segment<U>& segment, uint32_t* words, int64_t number) {
  // Not all of the counts: Phase::kScatter writes one of them.
  const uint32_t stored = w.tiles[number].stored;
  const Candidate<U>* const candidates = w.candidates + segment.first_candidate + w.tiles[number].start;
  const int64_t index = &segment - w.segments;
  const Range<SignedOf<U>> range = segment.search.range;
  const Phase phase = segment.phase;
  unsigned equal = 0;
  for (unsigned start = 0; start < stored; start += kWarp) {
    const bool real = start + static_cast<unsigned>(lane_id()) < stored;
    Candidate<U> candidate = {range.first, 0};
    if (real) candidate = candidates[start + static_cast<unsigned>(lane_id())];
    const bool in_range = real && range.holds(candidate.key), above = real && candidate.key > range.last;
    if (phase == Phase::kCandidateBins) {
      count_in_memory(w.bins + index * 2 * kTopkBins, in_range, range.bin(candidate.key));
      continue;
    }
    bool keep = above;
    if (phase == Phase::kGather && in_range) {
      const Counter slot = atomicAdd(&segment.gathered, Counter{1});
      w.gathered[index * kGathered + static_cast<int64_t>(slot)] = {candidate.key, number * kTileWords * kWordBits + candidate.at};
    } else if (phase == Phase::kScatter) {
      equal += in_range;
    } else if (phase == Phase::kScatterAll) {
      keep |= in_range;
    } else if (phase == Phase::kCandidateTies) {
      keep = in_range && number < segment.boundary;
    }
    if (keep) set_bit<U>(words, candidate.at);
  }
  if (phase == Phase::kScatter) {
    equal = __reduce_add_sync(kAll, equal);
    if (lane_id() == 0) w.tiles[number].inside = equal;
  }
}

__device__ inline bool is_about_candidates(Phase phase) {
  return phase == Phase::kCandidateBins || phase == Phase::kGather || phase == Phase::kScatter ||
         phase == Phase::kScatterAll || phase == Phase::kCandidateTies;
}

template <class U>
__device__ void candidates_pass(const Workspace<U>& w) {
  const int64_t warps = thread_count() / kWarp;
  for (int64_t number = thread_index() / kWarp; number < w.tile_count; number += warps) {
    const TensorEntry& tensor = tensor_of(w.tensors, w.tensor_count, number);
    Segment<U>& segment = w.segments[tensor.segment];
    if (!is_about_candidates(segment.phase)) continue;
    candidates_of_tile(w, segment, Tile<U>::of(tensor, number).words, number);
  }
}

// The boundary tile of a segment keeps the first `quota` of its equal candidates, which are in no order: a bitmap gives one.
template <class U>
__device__ void boundary_ties(Shared<U>& shared, const Workspace<U>& w, const Segment<U>& segment) {
  const TensorEntry& tensor = tensor_of(w.tensors, w.tensor_count, segment.boundary);
  uint32_t* const words = Tile<U>::of(tensor, segment.boundary).words;
  const TileCounts counts = w.tiles[segment.boundary];
  const Candidate<U>* const candidates = w.candidates + segment.first_candidate + counts.start;
  for (int word = static_cast<int>(threadIdx.x); word < kTileWords; word += kTopkThreads) shared.bitmap[word] = 0;
  __syncthreads();
  for (unsigned i = threadIdx.x; i < counts.stored; i += kTopkThreads) {
    if (segment.search.range.holds(candidates[i].key)) set_bit<U>(shared.bitmap, candidates[i].at);
  }
  __syncthreads();
  int64_t left = segment.quota;
  for (int start = 0; start < kTileWords; start += kTopkThreads) {
    const uint32_t ties = shared.bitmap[start + static_cast<int>(threadIdx.x)];
    int total;
    const int before = block_exclusive_sum<int, kTopkThreads>(__popc(ties), &total);
    const uint32_t kept = lowest_set_bits(ties, left - before);
    if (kept != 0) atomicOr(&words[start + static_cast<int>(threadIdx.x)], kept);
    left -= total;
  }
  __syncthreads();
}

template <class U>
__device__ void boundaries_pass(Shared<U>& shared, const Workspace<U>& w) {
  for (int64_t s = blockIdx.x; s < w.segment_count; s += gridDim.x) {
    const Segment<U>& segment = w.segments[s];
    if (segment.phase == Phase::kCandidateTies && segment.quota > 0) boundary_ties(shared, w, segment);
  }
}

}  // namespace sparsekit::cuda
