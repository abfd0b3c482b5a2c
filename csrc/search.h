// SPDX-License-Identifier: Apache-2.0
// The decisions of one exact selection, for the CPU and for a CUDA device alike; it reads no score itself.
//
// The loop around it looks at `step`, does that over all scores, and reports what it counted:
//
//   kSample   choose a bracket that very likely holds the threshold, then search_bracket()
//   kScan     one pass: set the bits of keys >= bracket.high, count those and the keys inside the bracket, and keep the
//             keys inside as candidates if `collect`, then after_scan()
//   kBins     one pass: histogram of the keys in the range, then after_bins()
//   kFinish   the candidates are complete: set the bits of the `ties` largest, the first among equals
//   kTies     the keys inside are all equal: keep the first `ties` of them
//   kDone     the masks are exact
//
// A bracket that misses the threshold costs further passes, never exactness: the counts of a pass prove where the
// threshold lies. A key that very many scores share is tried first, because that is what makes a sample miss.
#pragma once
#include <cstdint>

#include "select.h"

namespace sparsekit {

enum class Step : int32_t { kSample, kScan, kBins, kFinish, kTies, kDone };
// Where the bracket of a scan comes from: an earlier selection, a sample, a heavy key at its end, or histograms.
enum class Source : int32_t { kWarm, kSampled, kHeavy, kExact };

// The keys [first, last], one of which has the wanted rank among those of them that there are, cut into bins.
template <class Key>
struct Range {
  using U = std::make_unsigned_t<Key>;
  Key first, last;
  int64_t rank;
  int digit;  // bits of a bin's number
  int shift;  // bits that the keys of a bin do not share

  SPARSEKIT_BOTH void set(Key low, Key high, int64_t wanted) {
    first = low;
    last = high;
    rank = wanted;
    for (shift = 0; (width() >> shift) >> digit;) ++shift;
  }

  SPARSEKIT_BOTH uint64_t width() const { return static_cast<U>(static_cast<U>(last) - static_cast<U>(first)); }
  SPARSEKIT_BOTH bool holds(Key key) const { return first <= key && key <= last; }
  SPARSEKIT_BOTH int64_t bin(Key key) const { return bin_of(key, first, shift); }

  // Makes the bin the range.
  SPARSEKIT_BOTH void take(BinRank found) {
    const uint64_t offset = static_cast<uint64_t>(found.bin) << shift, end = offset + ((uint64_t{1} << shift) - 1);
    const Key high = static_cast<Key>(static_cast<U>(first) + static_cast<U>(end < width() ? end : width()));
    set(static_cast<Key>(static_cast<U>(first) + static_cast<U>(offset)), high, found.rank);
  }
};

template <class Key>
struct Search {
  static constexpr Key kLowest = KeySpec<std::make_unsigned_t<Key>>::kLowest + 1;    // the lowest key that can be kept
  static constexpr Key kHighest = KeySpec<std::make_unsigned_t<Key>>::kHighest - 1;  // the highest key there is

  int64_t numel, kept;
  int64_t limit;  // more candidates than this are not worth collecting
  bool keep_nan;
  int least_bins;  // histograms that come before a collecting scan whatever they count

  Step step;
  Source source;
  Bracket<Key> bracket;
  bool collect;
  Range<Key> range;  // what histograms narrow
  int64_t ties;
  float share;  // a guess: this part of the equal keys inside, the first in order, will be kept

  SPARSEKIT_BOTH void begin(int64_t elements, int64_t keep, bool keeps_nan, int64_t most, int digit_bits) {
    numel = elements;
    kept = keep;
    limit = most;
    keep_nan = keeps_nan;
    range.digit = digit_bits;
    least_bins = 0;
    step = Step::kSample;
    ties = 0;
    if (kept == 0) search_bracket(Bracket<Key>::unreachable(), Source::kExact, 0);
  }

  // Histograms alone: the plain radix selection.
  SPARSEKIT_BOTH void begin_radix() {
    least_bins = 2;
    if (kept > 0) narrow(kLowest, kHighest, kept);
  }

  SPARSEKIT_BOTH void search_bracket(Bracket<Key> where, Source from, float part) {
    bracket = where;
    source = from;
    share = part;
    collect = !is_single() && kept > 0;
    step = Step::kScan;
  }

  // Can only one key be inside the bracket?
  SPARSEKIT_BOTH bool is_single() const { return bracket.low < bracket.high && bracket.low + 1 == bracket.high - 1; }

  // complete: every key inside became a candidate.
  SPARSEKIT_BOTH void after_scan(int64_t above, int64_t inside, int64_t nans, bool complete) {
    if (!keep_nan && kept > numel - nans) kept = numel - nans;
    const int64_t need = kept - above;
    if (0 <= need && need <= inside) {
      settle(need, complete);
    } else if (source == Source::kWarm) {
      step = Step::kSample;
    } else if (source == Source::kHeavy) {
      narrow(range.first, range.last, range.rank);
    } else if (need < 0) {
      try_heavy(bracket.high, bracket.high, kHighest, kept, above);
    } else {
      // The ends may be one key, and then it was counted with those above.
      const Key below = bracket.low < bracket.high ? bracket.low : static_cast<Key>(bracket.high - 1);
      try_heavy(bracket.low, kLowest, below, need - inside, numel - above - inside);
    }
  }

  // total: keys in the range. Dropped NaN are in no range, so there may be fewer than wanted; false if there is none.
  SPARSEKIT_BOTH bool before_bins(int64_t total) {
    if (range.rank > total) {
      kept -= range.rank - total;
      range.rank = total;
    }
    if (range.rank == 0) search_bracket(Bracket<Key>::unreachable(), Source::kExact, 0);
    return range.rank > 0;
  }

  SPARSEKIT_BOTH void after_bins(BinRank found) {
    range.take(found);
    --least_bins;
    if (range.first == range.last || (found.count <= limit && least_bins <= 0)) {
      search_bracket({static_cast<Key>(range.first - 1), static_cast<Key>(range.last + 1)}, Source::kExact,
                     static_cast<float>(found.rank) / static_cast<float>(found.count));
    } else {
      step = Step::kBins;
    }
  }

 private:
  SPARSEKIT_BOTH void settle(int64_t need, bool complete) {
    ties = need;
    if (is_single()) step = Step::kTies;
    else if (need == 0) step = Step::kDone;
    else if (collect && complete) step = Step::kFinish;
    else narrow(static_cast<Key>(bracket.low + 1), static_cast<Key>(bracket.high - 1), need);
  }

  SPARSEKIT_BOTH void narrow(Key low, Key high, int64_t wanted) {
    range.set(low, high, wanted);
    step = Step::kBins;
    if (low == high) search_bracket(Bracket<Key>::around(low), Source::kExact, 0);
  }

  // count: keys in [low, high], most of which may be the heavy one.
  SPARSEKIT_BOTH void try_heavy(Key heavy, Key low, Key high, int64_t wanted, int64_t count) {
    range.set(low, high, wanted);
    search_bracket(Bracket<Key>::around(heavy), Source::kHeavy, static_cast<float>(wanted) / static_cast<float>(count));
  }
};

// The bracket to begin with when a similar set of scores is selected from again: as wide as the one that found threshold t,
// around t; narrower if it was crowded, wider if it hardly held t. False if an open bracket gives no width.
template <class Key>
SPARSEKIT_BOTH bool next_bracket(Bracket<Key> used, Key t, bool crowded, Bracket<Key>* next) {
  using U = std::make_unsigned_t<Key>;
  constexpr Key kLow = KeySpec<U>::kLowest, kHigh = KeySpec<U>::kHighest;
  if (used.low <= kLow || used.high >= kHigh || used.low >= t || used.high <= t) return false;
  const U width = static_cast<U>(static_cast<U>(used.high) - static_cast<U>(used.low));
  const U below = static_cast<U>(static_cast<U>(t) - static_cast<U>(used.low)), above = static_cast<U>(width - below);
  const bool tight = below < width / 8 || above < width / 8;
  U half = crowded ? width / 4 : tight ? width : width / 2;
  if (half == 0) half = 1;
  const U room_below = static_cast<U>(static_cast<U>(t) - static_cast<U>(kLow));
  const U room_above = static_cast<U>(static_cast<U>(kHigh) - static_cast<U>(t));
  next->low = half < room_below ? static_cast<Key>(static_cast<U>(t) - half) : kLow;
  next->high = half < room_above ? static_cast<Key>(static_cast<U>(t) + half) : kHigh;
  return true;
}

}  // namespace sparsekit
