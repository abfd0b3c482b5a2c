// SPDX-License-Identifier: Apache-2.0
// One exact selection by bracket, verify, finish.
//
// A sample of the scores gives a bracket of keys that very likely holds the threshold. One pass over the scores writes
// the words of everything above the bracket and collects the few candidates inside it. The counts of that pass prove
// whether the threshold is inside; then it is selected exactly among the candidates. Otherwise (a heavy tie at an end of
// the bracket, an unlucky sample, too many candidates) further passes over the scores find it.
#pragma once
#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

#include "parallel.h"
#include "sampled_bracket.h"
#include "score_blocks.h"
#include "topk_mask.h"

namespace sparsekit {

// Up to so many elements a sample would cost more than it saves.
constexpr int64_t kNoSample = 2048;
// At most this part of the elements is collected: more would cost more memory and time than reading the scores again.
constexpr int64_t kCandidateShare = 8;
// Elements for which a further thread is worth starting.
constexpr int64_t kPerThread = 1 << 18;

template <class U>
class Selection {
 public:
  using Spec = KeySpec<U>;
  using Key = typename Spec::Key;

  Selection(const std::vector<ScoreTensor>& tensors, int64_t kept, const SelectOptions& options, int threads)
      : tensors_(tensors),
        kept_(kept),
        keep_nan_(options.nan == NanPolicy::kKeep),
        spec_(options.dtype, options.key, options.nan),
        classify_(of_width<U>(choose_lanes(options.force)).classify) {
    for (const ScoreTensor& tensor : tensors) {
      numel_ += tensor.numel();
      cut_blocks(tensor, &blocks_);
    }
    threads_ = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(1, numel_ / kPerThread)));
    tallies_.resize(blocks_.size());
  }

  // Writes all words; returns the number of NaN.
  int64_t run() { return numel_ <= kNoSample ? run_small() : run_large(); }

 private:
  // Every key is looked at anyway: the threshold comes from a partial sort.
  int64_t run_small() {
    std::vector<Key> keys;
    keys.reserve(static_cast<size_t>(numel_));
    for (const ScoreTensor& tensor : tensors_) {
      const U* const scores = static_cast<const U*>(tensor.scores);
      for (int64_t at = 0; at < tensor.numel(); ++at) keys.push_back(spec_(scores[at]));
    }
    const int64_t nans = std::count(keys.begin(), keys.end(), spec_.nan_key);
    if (!keep_nan_) kept_ = std::min(kept_, numel_ - nans);
    if (kept_ == 0) {
      scan(Bracket<Key>::unreachable(), false);
      return nans;
    }
    const auto rank = keys.begin() + static_cast<std::ptrdiff_t>(kept_ - 1);
    std::nth_element(keys.begin(), rank, keys.end(), std::greater<>());
    settle_at(*rank);
    return nans;
  }

  int64_t run_large() {
    const Bracket<Key> bracket = kept_ == 0 ? Bracket<Key>::unreachable() : sampled_bracket(tensors_, numel_, kept_, spec_);
    const Counts counts = scan(bracket, true);
    if (!keep_nan_) kept_ = std::min(kept_, numel_ - counts.nans);
    const int64_t need = kept_ - counts.above;
    if (need < 0) {
      if (!settle_at(bracket.high)) settle_at(refine(bracket.high, Spec::kHighest, kept_));
    } else if (need > counts.inside) {
      // The ends may be one key, and then it was counted with those above.
      const Key below = std::min<Key>(bracket.low, bracket.high - 1);
      if (!settle_at(bracket.low)) settle_at(refine(Spec::kLowest + 1, below, need - counts.inside));
    } else if (counts.complete) {
      finish(bracket, need);
    } else if (need > 0) {
      settle_at(refine(bracket.low + 1, bracket.high - 1, need));
    }
    return counts.nans;
  }

  struct Candidate {
    Key key;
    uint32_t at;  // bit number inside the block
  };

  struct Tally {
    int64_t above = 0, inside = 0, nans = 0;
    std::vector<Candidate> candidates;
  };

  struct Counts {
    int64_t above = 0, inside = 0, nans = 0;
    bool complete = true;  // every key inside the bracket became a candidate
  };

  // Writes the bits of keys at or above the bracket, counts, and collects the keys inside it when asked to.
  Counts scan(Bracket<Key> bracket, bool collect) {
    parallel_for(threads_, static_cast<int64_t>(blocks_.size()),
                 [&](int64_t i) { scan_block(blocks_[i], bracket, collect, &tallies_[i]); });
    Counts counts;
    for (const Tally& tally : tallies_) {
      counts.above += tally.above;
      counts.inside += tally.inside;
      counts.nans += tally.nans;
      counts.complete &= tally.inside == static_cast<int64_t>(tally.candidates.size());
    }
    return counts;
  }

  void scan_block(const Block& block, Bracket<Key> bracket, bool collect, Tally* tally) {
    *tally = {};
    const uint32_t* const start = block.tensor.words + block.first;
    const auto visit = [&](uint32_t* words, int64_t count, const uint32_t* above, const uint32_t* inside, const U* scores) {
      int64_t found = 0;
      for (int64_t word = 0; word < count; ++word) {
        words[word] = above[word];
        tally->above += popcount32(above[word]);
        found += popcount32(inside[word]);
      }
      tally->inside += found;
      // Past the limit the candidates are of no use, in whichever block that happens.
      if (!collect || found == 0 || (collected_ += found) > numel_ / kCandidateShare) return;
      for (int64_t word = 0; word < count; ++word) {
        for (uint32_t left = inside[word]; left != 0; left &= left - 1) {
          const int64_t at = word * kWordBits + lowest_bit(left);
          tally->candidates.push_back({spec_(scores[at]), static_cast<uint32_t>((words - start) * kWordBits + at)});
        }
      }
    };
    tally->nans = classify_block<U>(block, classify_, spec_, bracket, visit);
  }

  // The candidates are complete and hold the threshold: sets the bits of the `need` largest, the first among equals.
  void finish(Bracket<Key> bracket, int64_t need) {
    if (need == 0) return;
    const auto count = [&](Key first, Key last, int shift, int64_t* bins) {
      for (const Tally& tally : tallies_) {
        for (const Candidate& candidate : tally.candidates) {
          if (first <= candidate.key && candidate.key <= last) ++bins[bin_of(candidate.key, first, shift)];
        }
      }
    };
    Threshold<Key> threshold = narrow<Key>(bracket.low + 1, bracket.high - 1, need, count);
    for (size_t i = 0; i < blocks_.size(); ++i) {
      uint32_t* const words = blocks_[i].tensor.words + blocks_[i].first;
      for (const Candidate& candidate : tallies_[i].candidates) {
        if (candidate.key < threshold.t || (candidate.key == threshold.t && threshold.ties-- <= 0)) continue;
        words[word_of(candidate.at)] |= one_bit(bit_of(candidate.at));
      }
    }
  }

  // The rank-th largest of the scores whose keys are in [first, last], by histograms of the scores themselves.
  Key refine(Key first, Key last, int64_t rank) const {
    std::mutex guard;
    const auto count = [&](Key low, Key high, int shift, int64_t* bins) {
      parallel_for(threads_, static_cast<int64_t>(blocks_.size()), [&](int64_t i) {
        int64_t own[kBins] = {};
        for_each_stretch<U>(blocks_[i], [&](const U* scores, uint32_t*, int64_t words, int64_t valid) {
          const int64_t elements = valid == kWordBits ? words * kWordBits : valid;
          for (int64_t at = 0; at < elements; ++at) {
            const Key key = spec_(scores[at]);
            if (low <= key && key <= high) ++own[bin_of(key, low, shift)];
          }
        });
        const std::lock_guard<std::mutex> lock(guard);
        for (int bin = 0; bin < kBins; ++bin) bins[bin] += own[bin];
      });
    };
    return narrow<Key>(first, last, rank, count).t;
  }

  // Writes the words for threshold t, the first keys equal to t in order; false if t is not the threshold.
  bool settle_at(Key t) {
    const Bracket<Key> ties = Bracket<Key>::around(t);
    const Counts counts = scan(ties, false);
    int64_t need = kept_ - counts.above;
    if (need < 0 || need > counts.inside) return false;
    std::vector<int64_t> quota(blocks_.size());
    for (size_t i = 0; i < blocks_.size(); ++i) {
      quota[i] = std::min(need, tallies_[i].inside);
      need -= quota[i];
    }
    parallel_for(threads_, static_cast<int64_t>(blocks_.size()), [&](int64_t i) {
      int64_t left = quota[i];
      if (left == 0) return;
      classify_block<U>(blocks_[i], classify_, spec_, ties, [&](auto* words, int64_t count, auto*, auto* equal, const U*) {
        for (int64_t word = 0; word < count && left > 0; ++word) {
          const uint32_t taken = lowest_bits(equal[word], left);
          words[word] |= taken;
          left -= popcount32(taken);
        }
      });
    });
    return true;
  }

  const std::vector<ScoreTensor>& tensors_;
  int64_t kept_, numel_ = 0;
  bool keep_nan_;
  int threads_ = 1;
  Spec spec_;
  ClassifyFn<U> classify_;
  std::vector<Block> blocks_;
  std::vector<Tally> tallies_;
  std::atomic<int64_t> collected_{0};
};

}  // namespace sparsekit
