// SPDX-License-Identifier: Apache-2.0
// Order-preserving integer keys of floating-point scores, brackets of keys, and exact selection by narrowing a range.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "dtypes.h"
#include "pack_bits.h"

namespace sparsekit {

enum class KeyKind { kValue, kMagnitude };
enum class NanPolicy { kError, kDrop, kKeep };

template <class U>
using SignedOf = std::make_signed_t<U>;

// How bit patterns U become signed keys: key(a) < key(b) exactly if score a < score b.
// -0.0 and 0.0 share a key. All NaN share nan_key: the lowest key when they are never kept, above +inf when they come first.
template <class U>
struct KeySpec {
  using Key = SignedOf<U>;
  static constexpr Key kLowest = std::numeric_limits<Key>::min();
  static constexpr Key kHighest = std::numeric_limits<Key>::max();

  U used_bits;  // all, or all but the sign for magnitudes
  Key infinity;
  Key nan_key;

  KeySpec(Dtype dtype, KeyKind kind, NanPolicy policy)
      : used_bits(kind == KeyKind::kMagnitude ? static_cast<U>(kHighest) : static_cast<U>(~U{0})),
        infinity(static_cast<Key>(infinity_bits(dtype))),
        // One below the highest, so that t + 1 exists for every threshold t.
        nan_key(policy == NanPolicy::kKeep ? static_cast<Key>(kHighest - 1) : kLowest) {}

  // The same with the kind of key known when it is compiled.
  template <bool kMagnitude>
  SPARSEKIT_BOTH Key of(U bits) const {
    if constexpr (!kMagnitude) return (*this)(bits);
    const Key used = static_cast<Key>(bits & static_cast<U>(kHighest));
    return used > infinity ? nan_key : used;
  }

  SPARSEKIT_BOTH Key operator()(U bits) const {
    const Key used = static_cast<Key>(bits & used_bits);
    if ((used & kHighest) > infinity) return nan_key;
    const Key key = used < 0 ? static_cast<Key>(used ^ kHighest) : used;
    return key == -1 ? Key{0} : key;
  }
};

// Keys >= high are certainly kept, keys in (low, high) are candidates, keys <= low are certainly not kept.
template <class Key>
struct Bracket {
  static constexpr Key kNone = std::numeric_limits<Key>::max();
  Key low, high;

  // The bracket that no key reaches.
  SPARSEKIT_BOTH static Bracket unreachable() { return {kNone, kNone}; }

  // The bracket whose only candidates are the keys equal to t.
  SPARSEKIT_BOTH static Bracket around(Key t) { return {static_cast<Key>(t - 1), static_cast<Key>(t + 1)}; }
};

// A threshold t and how many of the keys equal to it are kept, the first in order.
template <class Key>
struct Threshold {
  Key t;
  int64_t ties;
};

// Bins of the histograms that narrow a range.
constexpr int kDigit = 11, kBins = 1 << kDigit;

// A bin, the rank inside it, and how many keys it has.
struct BinRank {
  int64_t bin, rank, count;
};

// Where the rank-th largest key (1 <= rank <= sum of bins) is in a histogram.
inline BinRank find_bin(const int64_t* bins, int64_t count, int64_t rank) {
  int64_t bin = count - 1;
  for (; bin > 0 && bins[bin] < rank; --bin) rank -= bins[bin];
  return {bin, rank, bins[bin]};
}

// The bin of key in a histogram of a range that starts at first.
template <class Key>
SPARSEKIT_BOTH int64_t bin_of(Key key, Key first, int shift) {
  using U = std::make_unsigned_t<Key>;
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<U>(static_cast<U>(key) - static_cast<U>(first))) >> shift);
}

}  // namespace sparsekit
