// SPDX-License-Identifier: Apache-2.0
// Exact top-k masks of rows: one block for a row, which reads it again from the caches as often as a histogram is narrowed.
#include "search.h"
#include "topk_compare.cuh"
#include "topk_mask_cuda.h"

// Blocks at most; beyond it each has several rows.
#ifndef SPARSEKIT_TOPK_ROW_BLOCKS
#define SPARSEKIT_TOPK_ROW_BLOCKS (1 << 16)
#endif

namespace sparsekit::cuda {
namespace {

constexpr int kRowBins = 1 << SPARSEKIT_TOPK_DIGIT;

struct RowShared {
  uint32_t bins[kRowBins];
  unsigned nans;
  BinRank found;
};

// Calls visit(key) for the elements of the row.
template <bool kMagnitude, class U, class Visit>
__device__ void for_row(const U* row, int64_t cols, const KeySpec<U>& spec, const Visit& visit) {
  for (int64_t i = threadIdx.x; i < cols; i += kTopkThreads) visit(spec.template of<kMagnitude>(load(row + i)));
}

// The bin that holds the wanted rank; clears the bins.
__device__ BinRank find_row_bin(RowShared& shared, int64_t rank) {
  constexpr int kEach = (kRowBins + kTopkThreads - 1) / kTopkThreads;
  const int end = kRowBins - static_cast<int>(threadIdx.x) * kEach;
  int64_t sum = 0, total;
  for (int bin = end - 1; bin >= 0 && bin >= end - kEach; --bin) sum += shared.bins[bin];
  const int64_t before = block_exclusive_sum<int64_t, kTopkThreads>(sum, &total);
  if (before < rank && rank <= before + sum) {
    int bin = end - 1;
    for (rank -= before; rank > shared.bins[bin]; --bin) rank -= shared.bins[bin];
    shared.found = {bin, rank, shared.bins[bin]};
  }
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < kRowBins; bin += kTopkThreads) shared.bins[bin] = 0;
  __syncthreads();
  return shared.found;
}

// Narrows the range of all keys to the threshold of the row.
template <bool kMagnitude, class U>
__device__ Range<SignedOf<U>> row_threshold(RowShared& shared, const U* row, int64_t cols, int64_t kept,
                                            const KeySpec<U>& spec) {
  using Key = SignedOf<U>;
  Range<Key> range{};
  range.digit = SPARSEKIT_TOPK_DIGIT;
  range.set(Search<Key>::kLowest, Search<Key>::kHighest, kept);
  while (range.first < range.last) {
    for_row<kMagnitude>(row, cols, spec, [&](Key key) {
      if (range.holds(key)) atomicAdd(&shared.bins[range.bin(key)], 1u);
    });
    __syncthreads();
    range.take(find_row_bin(shared, range.rank));
  }
  return range;
}

// Writes the words of a row: keys above the threshold, and the first `ties` equal ones.
template <bool kMagnitude, class U>
__device__ void write_row(const U* row, uint32_t* words, int64_t cols, const KeySpec<U>& spec, Bracket<SignedOf<U>> bracket,
                          int64_t ties) {
  const int64_t count = words_per_row(cols);
  for (int64_t start = 0; start < count; start += kTopkThreads) {
    // The row is a tensor of its own here.
    const int64_t left = count - start;
    Tile<U> tile{row, words + start, cols, count, start, static_cast<int>(left < kTopkThreads ? left : kTopkThreads), true,
                 reinterpret_cast<uintptr_t>(row) % 16 == 0};
    const int first = warp_id() * kWarp, word = first + lane_id();
    ShotBits bits = {0, 0, 0};
    if (first < tile.count) bits = classify<kMagnitude>(tile, first, spec, bracket);
    int total;
    const int before = block_exclusive_sum<int, kTopkThreads>(__popc(bits.inside), &total);
    if (word < tile.count) tile.words[word] = bits.above | lowest_set_bits(bits.inside, ties - before);
    ties -= total;
  }
}

template <class U, bool kMagnitude>
__global__ void __launch_bounds__(kTopkThreads, sizeof(U) == 8 ? 2 : 3)
    rows_kernel(ScoreTensor scores, int64_t kept, KeySpec<U> spec, bool keep_nan, bool report, uint8_t* invalid) {
  using Key = SignedOf<U>;
  SPARSEKIT_SHARED(RowShared, shared);
  for (int bin = static_cast<int>(threadIdx.x); bin < kRowBins; bin += kTopkThreads) shared.bins[bin] = 0;
  for (int64_t r = blockIdx.x; r < scores.rows; r += gridDim.x) {
    const U* const row = static_cast<const U*>(scores.scores) + r * scores.cols;
    if (threadIdx.x == 0) shared.nans = 0;
    __syncthreads();
    unsigned nans = 0;
    for_row<kMagnitude>(row, scores.cols, spec, [&](Key key) { nans += key == spec.nan_key; });
    if (nans != 0) atomicAdd(&shared.nans, nans);
    __syncthreads();
    const int64_t missing = shared.nans;
    const int64_t wanted = keep_nan || kept <= scores.cols - missing ? kept : scores.cols - missing;
    if (report && missing > 0 && threadIdx.x == 0) raise_flag(invalid);
    Bracket<Key> bracket = Bracket<Key>::unreachable();
    int64_t ties = 0;
    if (wanted > 0) {
      const Range<Key> range = row_threshold<kMagnitude>(shared, row, scores.cols, wanted, spec);
      bracket = Bracket<Key>::around(range.first);
      ties = range.rank;
    }
    write_row<kMagnitude>(row, scores.words + r * words_per_row(scores.cols), scores.cols, spec, bracket, ties);
    __syncthreads();
  }
}

template <class U>
int select_rows(const ScoreTensor& scores, int64_t kept, const SelectOptions& options, uint8_t* invalid, uintptr_t stream) {
  const auto kernel = options.key == KeyKind::kMagnitude ? &rows_kernel<U, true> : &rows_kernel<U, false>;
  const int64_t blocks = std::min<int64_t>(scores.rows, SPARSEKIT_TOPK_ROW_BLOCKS);
  return launch(kernel, blocks, kTopkThreads, stream, false, scores, kept,
                KeySpec<U>(options.dtype, options.key, options.nan), options.nan == NanPolicy::kKeep,
                options.nan == NanPolicy::kError, invalid);
}

}  // namespace

int topk_mask_rows(const ScoreTensor& scores, int64_t kept, const SelectOptions& options, uint8_t* invalid, int device,
                   uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess || scores.numel() == 0) return guard.code();
  switch (itemsize(options.dtype)) {
    case 2: return select_rows<uint16_t>(scores, kept, options, invalid, stream);
    case 4: return select_rows<uint32_t>(scores, kept, options, invalid, stream);
    default: return select_rows<uint64_t>(scores, kept, options, invalid, stream);
  }
}

}  // namespace sparsekit::cuda
