// SPDX-License-Identifier: Apache-2.0
// One exact selection on the CPU: what Search asks for, done over blocks of the scores on several threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <numeric>
#include <vector>

#include "parallel.h"
#include "sampled_bracket.h"
#include "score_blocks.h"
#include "search.h"
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
        spec_(options.dtype, options.key, options.nan),
        classify_(of_width<U>(choose_lanes(options.force)).classify) {
    int64_t numel = 0;
    for (const ScoreTensor& tensor : tensors) {
      numel += tensor.numel();
      cut_blocks(tensor, &blocks_);
    }
    threads_ = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(1, numel / kPerThread)));
    tallies_.resize(blocks_.size());
    const int64_t limit = options.method == Method::kRadix ? numel / 64 : numel / kCandidateShare;
    search_.begin(numel, kept, options.nan == NanPolicy::kKeep, limit, kDigit);
    if (options.method == Method::kRadix) search_.begin_radix();
    else if (numel <= kNoSample && kept > 0) search_.search_bracket(exact_bracket(), Source::kExact, 0);
  }

  // Writes all words; returns the number of NaN.
  int64_t run(WarmBracket* warm) {
    if (warm != nullptr && warm->valid && search_.step == Step::kSample) {
      search_.search_bracket({static_cast<Key>(warm->low), static_cast<Key>(warm->high)}, Source::kWarm, 0);
    }
    while (search_.step != Step::kDone) step();
    if (warm != nullptr) remember(warm);
    return nans_;
  }

 private:
  struct Candidate {
    Key key;
    uint32_t at;  // bit number inside the block
  };

  struct Tally {
    int64_t above = 0, inside = 0, nans = 0;
    bool ties_written = false;
    std::vector<Candidate> candidates;
  };

  void step() {
    switch (search_.step) {
      case Step::kSample: {
        const Sampled<Key> sampled = sampled_bracket(tensors_, search_.numel, search_.kept, spec_);
        return search_.search_bracket(sampled.bracket, Source::kSampled, sampled.share);
      }
      case Step::kScan: return scan();
      case Step::kBins: return count_bins();
      case Step::kFinish: return finish();
      default: return keep_ties();
    }
  }

  // Every key is looked at anyway: the threshold comes from a partial sort.
  Bracket<Key> exact_bracket() const {
    std::vector<Key> keys;
    keys.reserve(static_cast<size_t>(search_.numel));
    for (const ScoreTensor& tensor : tensors_) {
      const U* const scores = static_cast<const U*>(tensor.scores);
      for (int64_t at = 0; at < tensor.numel(); ++at) keys.push_back(spec_(scores[at]));
    }
    int64_t kept = search_.kept;
    if (!search_.keep_nan) kept = std::min<int64_t>(kept, search_.numel - std::count(keys.begin(), keys.end(), spec_.nan_key));
    if (kept == 0) return Bracket<Key>::unreachable();
    const auto rank = keys.begin() + static_cast<std::ptrdiff_t>(kept - 1);
    std::nth_element(keys.begin(), rank, keys.end(), std::greater<>());
    return Bracket<Key>::around(*rank);
  }

  // Writes the bits of keys at or above the bracket, counts, and collects the keys inside it when asked to. Blocks whose
  // equal keys will probably all be kept get their bits as well.
  void scan() {
    collected_ = 0;
    const int64_t blocks = static_cast<int64_t>(blocks_.size());
    const int64_t whole = search_.is_single() ? static_cast<int64_t>(search_.share * static_cast<float>(blocks)) : 0;
    parallel_for(threads_, blocks, [&](int64_t i) { scan_block(blocks_[i], i < whole, &tallies_[i]); });
    int64_t above = 0, inside = 0;
    bool complete = true;
    nans_ = 0;
    for (const Tally& tally : tallies_) {
      above += tally.above;
      inside += tally.inside;
      nans_ += tally.nans;
      complete &= tally.inside == static_cast<int64_t>(tally.candidates.size());
    }
    inside_ = inside;
    search_.after_scan(above, inside, nans_, complete);
  }

  void scan_block(const Block& block, bool with_ties, Tally* tally) {
    *tally = {};
    tally->ties_written = with_ties;
    const uint32_t* const start = block.tensor.words + block.first;
    const auto visit = [&](uint32_t* words, int64_t count, const uint32_t* above, const uint32_t* inside, const U* scores) {
      int64_t found = 0;
      for (int64_t word = 0; word < count; ++word) {
        words[word] = with_ties ? above[word] | inside[word] : above[word];
        tally->above += popcount32(above[word]);
        found += popcount32(inside[word]);
      }
      tally->inside += found;
      // Past the limit the candidates are of no use, in whichever block that happens.
      if (!search_.collect || found == 0 || (collected_ += found) > search_.limit) return;
      for (int64_t word = 0; word < count; ++word) {
        for (uint32_t left = inside[word]; left != 0; left &= left - 1) {
          const int64_t at = word * kWordBits + lowest_bit(left);
          tally->candidates.push_back({spec_(scores[at]), static_cast<uint32_t>((words - start) * kWordBits + at)});
        }
      }
    };
    tally->nans = classify_block<U>(block, classify_, spec_, search_.bracket, visit);
  }

  // A histogram of the scores in the range; the mutex guards the sum over threads.
  void count_bins() {
    std::vector<int64_t> bins(kBins);
    std::mutex guard;
    const Range<Key> range = search_.range;
    parallel_for(threads_, static_cast<int64_t>(blocks_.size()), [&](int64_t i) {
      int64_t own[kBins] = {};
      for_each_stretch<U>(blocks_[i], [&](const U* scores, uint32_t*, int64_t words, int64_t valid) {
        const int64_t elements = valid == kWordBits ? words * kWordBits : valid;
        for (int64_t at = 0; at < elements; ++at) {
          const Key key = spec_(scores[at]);
          if (range.holds(key)) ++own[range.bin(key)];
        }
      });
      const std::lock_guard<std::mutex> lock(guard);
      for (int bin = 0; bin < kBins; ++bin) bins[bin] += own[bin];
    });
    if (search_.before_bins(std::accumulate(bins.begin(), bins.end(), int64_t{0}))) {
      search_.after_bins(find_bin(bins.data(), kBins, search_.range.rank));
    }
  }

  // The candidates are complete and hold the threshold: sets the bits of the largest, the first among equals.
  void finish() {
    Range<Key>& range = search_.range;
    range.set(search_.bracket.low + 1, search_.bracket.high - 1, search_.ties);
    while (range.first < range.last) {
      int64_t bins[kBins] = {};
      for (const Tally& tally : tallies_) {
        for (const Candidate& candidate : tally.candidates) {
          if (range.holds(candidate.key)) ++bins[range.bin(candidate.key)];
        }
      }
      range.take(find_bin(bins, kBins, range.rank));
    }
    int64_t ties = range.rank;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      uint32_t* const words = blocks_[i].tensor.words + blocks_[i].first;
      for (const Candidate& candidate : tallies_[i].candidates) {
        if (candidate.key < range.first || (candidate.key == range.first && ties-- <= 0)) continue;
        words[word_of(candidate.at)] |= one_bit(bit_of(candidate.at));
      }
    }
    found_ = true;
    search_.step = Step::kDone;
  }

  // All keys inside the bracket are equal: leaves the bits of the first `ties` of them, in order.
  void keep_ties() {
    int64_t left = search_.ties;
    std::vector<int64_t> quota(blocks_.size());
    for (size_t i = 0; i < blocks_.size(); ++i) {
      quota[i] = std::min(left, tallies_[i].inside);
      left -= quota[i];
    }
    parallel_for(threads_, static_cast<int64_t>(blocks_.size()), [&](int64_t i) {
      int64_t rest = quota[i];
      if (rest == (tallies_[i].ties_written ? tallies_[i].inside : 0)) return;
      classify_block<U>(blocks_[i], classify_, spec_, search_.bracket,
                        [&](uint32_t* words, int64_t count, const uint32_t* above, const uint32_t* equal, const U*) {
        for (int64_t word = 0; word < count; ++word) {
          const uint32_t taken = lowest_bits(equal[word], rest);
          words[word] = above[word] | taken;
          rest -= popcount32(taken);
        }
      });
    });
    search_.step = Step::kDone;
  }

  // A heavy key is found again by a sample, which also tells how much of it is kept.
  void remember(WarmBracket* warm) const {
    Bracket<Key> next{};
    const bool crowded = inside_ > search_.limit / 2;
    warm->valid = found_ && next_bracket(search_.bracket, search_.range.first, crowded, &next);
    warm->low = next.low;
    warm->high = next.high;
  }

  const std::vector<ScoreTensor>& tensors_;
  int threads_ = 1;
  int64_t nans_ = 0, inside_ = 0;
  Spec spec_;
  ClassifyFn<U> classify_;
  Search<Key> search_{};
  bool found_ = false;  // among candidates
  std::vector<Block> blocks_;
  std::vector<Tally> tallies_;
  std::atomic<int64_t> collected_{0};
};

}  // namespace sparsekit
