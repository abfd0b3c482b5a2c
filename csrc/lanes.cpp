// SPDX-License-Identifier: Apache-2.0
// Inner loops per instruction set and the choice between them.
#include "lanes.h"

#include <stdexcept>
#include <utility>

#include "pack_bits.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define SPARSEKIT_X86_LANES 1
#include <immintrin.h>
#endif

namespace sparsekit {
namespace {

// Inlined into each path, whose target decides whether a count of bits is one instruction.
__attribute__((always_inline)) inline void add_counts(const uint32_t* before, const uint32_t* after, int64_t words,
                                                      int64_t* totals) {
  int64_t sums[3] = {};
  const auto add = [&](uint64_t old_bits, uint64_t new_bits) __attribute__((always_inline)) {
    sums[0] += __builtin_popcountll(old_bits);
    sums[1] += __builtin_popcountll(new_bits);
    sums[2] += __builtin_popcountll(old_bits & new_bits);
  };
  int64_t word = 0;
  for (; word + 2 <= words; word += 2) {
    uint64_t old_bits, new_bits;
    __builtin_memcpy(&old_bits, before + word, sizeof old_bits);
    __builtin_memcpy(&new_bits, after + word, sizeof new_bits);
    add(old_bits, new_bits);
  }
  if (word < words) add(before[word], after[word]);
  for (int i = 0; i < 3; ++i) totals[i] += sums[i];
}

}  // namespace
}  // namespace sparsekit

namespace sparsekit::scalar {

template <class U>
struct Loops {
  static int64_t classify(const U* scores, int64_t count, KeySpec<U> spec, Bracket<SignedOf<U>> bracket, uint32_t* above,
                          uint32_t* inside) {
    int64_t nans = 0;
    for (int64_t word = 0; word < count; ++word) {
      uint32_t high_bits = 0, low_bits = 0;
      for (int i = 0; i < kWordBits; ++i) {
        const auto key = spec(scores[word * kWordBits + i]);
        high_bits |= static_cast<uint32_t>(key >= bracket.high) << i;
        low_bits |= static_cast<uint32_t>(key > bracket.low) << i;
        nans += key == spec.nan_key;
      }
      above[word] = high_bits;
      inside[word] = low_bits & ~high_bits;
    }
    return nans;
  }

  static void keep(const U* weight, const uint32_t* words, int64_t count, U* out) {
    for (int64_t at = 0; at < count * kWordBits; ++at) out[at] = test_bit(words[word_of(at)], bit_of(at)) ? weight[at] : U{0};
  }
};

void count(const uint32_t* before, const uint32_t* after, int64_t words, int64_t* totals) {
  add_counts(before, after, words, totals);
}

const Lanes kTable = {{Loops<uint16_t>::classify, Loops<uint16_t>::keep},
                      {Loops<uint32_t>::classify, Loops<uint32_t>::keep},
                      {Loops<uint64_t>::classify, Loops<uint64_t>::keep},
                      count};

}  // namespace sparsekit::scalar

#ifdef SPARSEKIT_X86_LANES

namespace sparsekit::avx2 {
#define AVX2_TARGET __attribute__((target("avx2,bmi,bmi2,popcnt")))

// Lane masks (all ones or zero) -> one bit per lane, and back.
template <class U>
struct Bits {
  template <class V>
  AVX2_TARGET static inline uint32_t of(V mask) {
    if constexpr (sizeof(U) == 8) return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
    else if constexpr (sizeof(U) == 4) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
    // One byte per lane first; packing works inside 128-bit halves, so the halves are brought together after it.
    const __m256i bytes = _mm256_packs_epi16((__m256i)mask, _mm256_setzero_si256());
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xD8))) & 0xffffu;
  }

  template <class V>
  AVX2_TARGET static inline V spread(uint32_t bits) {
    V lane_bit{};
    for (size_t lane = 0; lane < sizeof(V) / sizeof(U); ++lane) lane_bit[lane] = static_cast<SignedOf<U>>(U{1} << lane);
    return (lane_bit & static_cast<SignedOf<U>>(bits)) != 0;
  }
};
}  // namespace sparsekit::avx2

#define LANES_NAMESPACE avx2
#define LANES_TARGET AVX2_TARGET
#define LANES_BYTES 32
#include "lanes.inl"

namespace sparsekit::avx512 {
#define AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,popcnt")))

template <class U>
struct Bits {
  template <class V>
  AVX512_TARGET static inline uint32_t of(V mask) {
    if constexpr (sizeof(U) == 8) return _mm512_movepi64_mask((__m512i)mask);
    else if constexpr (sizeof(U) == 4) return _mm512_movepi32_mask((__m512i)mask);
    else return _mm512_movepi16_mask((__m512i)mask);
  }

  template <class V>
  AVX512_TARGET static inline V spread(uint32_t bits) {
    if constexpr (sizeof(U) == 8) return (V)_mm512_movm_epi64(static_cast<__mmask8>(bits));
    else if constexpr (sizeof(U) == 4) return (V)_mm512_movm_epi32(static_cast<__mmask16>(bits));
    else return (V)_mm512_movm_epi16(bits);
  }
};
}  // namespace sparsekit::avx512

#define LANES_NAMESPACE avx512
#define LANES_TARGET AVX512_TARGET
#define LANES_BYTES 64
#include "lanes.inl"

#endif  // SPARSEKIT_X86_LANES

namespace sparsekit {
namespace {

std::vector<std::pair<std::string, const Lanes*>> available() {
  std::vector<std::pair<std::string, const Lanes*>> paths = {{"scalar", &scalar::kTable}};
#ifdef SPARSEKIT_X86_LANES
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                        __builtin_cpu_supports("popcnt");
  if (has_avx2) paths.emplace_back("avx2", &avx2::kTable);
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    paths.emplace_back("avx512", &avx512::kTable);
  }
#endif
  return paths;
}

}  // namespace

std::vector<std::string> lane_paths() {
  std::vector<std::string> names;
  for (const auto& path : available()) names.push_back(path.first);
  return names;
}

const Lanes& choose_lanes(const std::string& name) {
  static const auto paths = available();
  if (name.empty()) return *paths.back().second;
  std::string known;
  for (const auto& path : paths) {
    if (path.first == name) return *path.second;
    known += " " + path.first;
  }
  throw std::invalid_argument("force: expected one of" + known + ", got " + name);
}

}  // namespace sparsekit
