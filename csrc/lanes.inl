// SPDX-License-Identifier: Apache-2.0
// Vector form of the inner loops; included once per instruction set with
//   LANES_NAMESPACE  where to put it,   LANES_TARGET  the function attribute,   LANES_BYTES  the register width.
// One source for all widths: compiler vectors do the arithmetic, only Bits (lane masks from and to
// bits) differs between instruction sets.

namespace sparsekit::LANES_NAMESPACE {

template <class T>
using Vector __attribute__((vector_size(LANES_BYTES))) = T;

template <class U>
struct Loops {
  using S = SignedOf<U>;
  using V = Vector<S>;
  static constexpr int kLanes = LANES_BYTES / static_cast<int>(sizeof(U));
  static constexpr int kVectors = kWordBits / kLanes;

  LANES_TARGET static inline V load(const U* source) {
    V vector;
    __builtin_memcpy(&vector, source, sizeof vector);
    return vector;
  }

  LANES_TARGET static inline V key_of(V raw, const KeySpec<U>& spec, V* is_nan) {
    const V used = raw & static_cast<S>(spec.used_bits);
    *is_nan = (used & KeySpec<U>::kHighest) > spec.infinity;
    const V key = used ^ ((used < 0) & KeySpec<U>::kHighest);
    const V canonical = key & ~(key == -1);  // the key of -0.0 is -1 here
    return (canonical & ~*is_nan) | (*is_nan & spec.nan_key);
  }

  LANES_TARGET static int64_t classify(const U* scores, int64_t count, KeySpec<U> spec, Bracket<S> bracket, uint32_t* above,
                                       uint32_t* inside) {
    int64_t nans = 0;
    for (int64_t word = 0; word < count; ++word) {
      uint32_t high_bits = 0, low_bits = 0, nan_bits = 0;
      for (int part = 0; part < kVectors; ++part) {
        V is_nan;
        const V key = key_of(load(scores + word * kWordBits + part * kLanes), spec, &is_nan);
        high_bits |= Bits<U>::of(key >= bracket.high) << (part * kLanes % kWordBits);
        low_bits |= Bits<U>::of(key > bracket.low) << (part * kLanes % kWordBits);
        nan_bits |= Bits<U>::of(is_nan) << (part * kLanes % kWordBits);
      }
      above[word] = high_bits;
      inside[word] = low_bits & ~high_bits;
      nans += __builtin_popcount(nan_bits);
    }
    return nans;
  }

  LANES_TARGET static void keep(const U* weight, const uint32_t* words, int64_t count, U* out) {
    for (int64_t word = 0; word < count; ++word) {
      for (int part = 0; part < kVectors; ++part) {
        const int64_t at = word * kWordBits + part * kLanes;
        const V kept = Bits<U>::template spread<V>(words[word] >> (part * kLanes % kWordBits));
        const V result = load(weight + at) & kept;
        __builtin_memcpy(out + at, &result, sizeof result);
      }
    }
  }
};

LANES_TARGET void count(const uint32_t* before, const uint32_t* after, int64_t words, int64_t* totals) {
  add_counts(before, after, words, totals);
}

const Lanes kTable = {{Loops<uint16_t>::classify, Loops<uint16_t>::keep},
                      {Loops<uint32_t>::classify, Loops<uint32_t>::keep},
                      {Loops<uint64_t>::classify, Loops<uint64_t>::keep},
                      count};

}  // namespace sparsekit::LANES_NAMESPACE

#undef LANES_NAMESPACE
#undef LANES_TARGET
#undef LANES_BYTES
