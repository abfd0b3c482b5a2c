// SPDX-License-Identifier: Apache-2.0
#include "threshold.h"

#include <algorithm>
#include <mutex>

#include "parallel.h"
#include "score_blocks.h"

namespace sparsekit {
namespace {

// Elements of one task: few enough for counts of 32 bits.
constexpr int64_t kChunk = kBlockWords * kWordBits;
// Neighbours that share a bin would wait for each other's increment in one table.
constexpr int kTables = 4;

template <class U>
class Histogram {
 public:
  Histogram(const KeyBins& bins, const SelectOptions& options)
      : spec_(options.dtype, options.key, options.nan),
        first_(static_cast<Key>(bins.first)),
        shift_(bins.shift),
        count_(bins.count),
        classify_(of_width<U>(choose_lanes(options.force)).classify) {}

  // Adds `elements` <= kChunk scores to counts.
  void add(const U* scores, int64_t elements, int64_t* counts) const {
    uint32_t own[kTables][kBins] = {};
    // Bins up to the top are the first, wide ones and hold most keys; of narrow ones few keys are worth a second look.
    if (end() == Spec::kHighest) {
      for (int64_t at = 0; at < elements; ++at) count(scores[at], own[at % kTables]);
    } else {
      add_inside(scores, elements, own[0]);
    }
    for (const auto& table : own) {
      for (int64_t bin = 0; bin < count_; ++bin) counts[bin] += table[bin];
    }
  }

 private:
  using Spec = KeySpec<U>;
  using Key = typename Spec::Key;

  void count(U score, uint32_t* table) const {
    const Key key = spec_(score);
    if (key < first_) return;
    const uint64_t bin = static_cast<uint64_t>(bin_of(key, first_, shift_));
    if (bin < static_cast<uint64_t>(count_)) ++table[bin];
  }

  void add_inside(const U* scores, int64_t elements, uint32_t* table) const {
    const Bracket<Key> bracket = {static_cast<Key>(first_ - 1), end()};
    uint32_t above[kRunWords], inside[kRunWords];
    const int64_t words = elements / kWordBits;
    for (int64_t start = 0; start < words; start += kRunWords) {
      const int64_t run = std::min(kRunWords, words - start);
      const U* const source = scores + start * kWordBits;
      classify_(source, run, spec_, bracket, above, inside);
      for (int64_t word = 0; word < run; ++word) {
        for (uint32_t left = inside[word]; left != 0; left &= left - 1) {
          count(source[word * kWordBits + lowest_bit(left)], table);
        }
      }
    }
    for (int64_t at = words * kWordBits; at < elements; ++at) count(scores[at], table);
  }

  // The first key behind the bins, or the highest one, which no score has.
  Key end() const {
    const uint64_t room = static_cast<U>(static_cast<U>(Spec::kHighest) - static_cast<U>(first_));
    if (static_cast<uint64_t>(count_) > (room >> shift_)) return Spec::kHighest;
    return static_cast<Key>(static_cast<U>(first_) + static_cast<U>(static_cast<uint64_t>(count_) << shift_));
  }

  Spec spec_;
  Key first_;
  int shift_;
  int64_t count_;
  ClassifyFn<U> classify_;
};

template <class U>
void count_keys(const std::vector<ScoreTensor>& tensors, const KeyBins& bins, const SelectOptions& options, int64_t* counts) {
  struct Chunk {
    size_t tensor;
    int64_t first, elements;
  };
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (int64_t first = 0; first < tensors[i].numel(); first += kChunk) {
      chunks.push_back({i, first, std::min(kChunk, tensors[i].numel() - first)});
    }
  }
  std::fill_n(counts, static_cast<int64_t>(tensors.size()) * bins.count, int64_t{0});
  const Histogram<U> histogram(bins, options);
  std::mutex guard;
  parallel_for(options.threads, static_cast<int64_t>(chunks.size()), [&](int64_t i) {
    const Chunk& chunk = chunks[i];
    int64_t own[kBins] = {};
    histogram.add(static_cast<const U*>(tensors[chunk.tensor].scores) + chunk.first, chunk.elements, own);
    int64_t* const target = counts + static_cast<int64_t>(chunk.tensor) * bins.count;
    const std::lock_guard<std::mutex> lock(guard);
    for (int64_t bin = 0; bin < bins.count; ++bin) target[bin] += own[bin];
  });
}

template <class U>
void write_mask(const std::vector<ScoreTensor>& tensors, int64_t threshold, const std::vector<int64_t>& ties,
                const SelectOptions& options) {
  const KeySpec<U> spec(options.dtype, options.key, options.nan);
  const auto bracket = Bracket<SignedOf<U>>::around(static_cast<SignedOf<U>>(threshold));
  const ClassifyFn<U> classify = of_width<U>(choose_lanes(options.force)).classify;
  std::vector<Block> blocks;
  std::vector<size_t> ends;
  for (const ScoreTensor& tensor : tensors) {
    cut_blocks(tensor, &blocks);
    ends.push_back(blocks.size());
  }
  std::vector<int64_t> quota(blocks.size());
  parallel_for(options.threads, static_cast<int64_t>(blocks.size()), [&](int64_t i) {
    int64_t equal_keys = 0;
    classify_block<U>(blocks[i], classify, spec, bracket, [&](auto* words, int64_t count, auto* above, auto* equal, const U*) {
      for (int64_t word = 0; word < count; ++word) {
        words[word] = above[word];
        equal_keys += popcount32(equal[word]);
      }
    });
    quota[i] = equal_keys;
  });
  for (size_t tensor = 0, block = 0; tensor < tensors.size(); ++tensor) {
    for (int64_t left = ties[tensor]; block < ends[tensor]; ++block) {
      quota[block] = std::min(left, quota[block]);
      left -= quota[block];
    }
  }
  parallel_for(options.threads, static_cast<int64_t>(blocks.size()), [&](int64_t i) {
    int64_t left = quota[i];
    if (left == 0) return;
    classify_block<U>(blocks[i], classify, spec, bracket, [&](auto* words, int64_t count, auto*, auto* equal, const U*) {
      for (int64_t word = 0; word < count && left > 0; ++word) {
        const uint32_t taken = lowest_bits(equal[word], left);
        words[word] |= taken;
        left -= popcount32(taken);
      }
    });
  });
}

}  // namespace

void key_histogram(const std::vector<ScoreTensor>& tensors, const KeyBins& bins, const SelectOptions& options,
                   int64_t* counts) {
  for_width(options.dtype, [&](auto bits) { count_keys<decltype(bits)>(tensors, bins, options, counts); });
}

void mask_at_threshold(const std::vector<ScoreTensor>& tensors, int64_t threshold, const std::vector<int64_t>& ties,
                       const SelectOptions& options) {
  for_width(options.dtype, [&](auto bits) { write_mask<decltype(bits)>(tensors, threshold, ties, options); });
}

}  // namespace sparsekit
