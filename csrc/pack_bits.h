// SPDX-License-Identifier: Apache-2.0
// The bit order of packed masks. No other C++ file of the CPU part knows it, and the CUDA part takes it from here.
//
// A mask [rows, cols] is stored as uint32 words [rows, words_per_row(cols)]: bit i (least significant first) of word j
// of row r is element (r, 32 * j + i). Bits beyond cols are zero.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE2__) && !defined(__CUDACC__)
#include <emmintrin.h>
#endif

#ifdef __CUDACC__
#define SPARSEKIT_BOTH __host__ __device__ inline
#else
#define SPARSEKIT_BOTH inline
#endif

namespace sparsekit {

constexpr int kWordBits = 32;

SPARSEKIT_BOTH int64_t words_per_row(int64_t cols) { return (cols + kWordBits - 1) / kWordBits; }
SPARSEKIT_BOTH int64_t word_of(int64_t col) { return col >> 5; }
SPARSEKIT_BOTH int bit_of(int64_t col) { return static_cast<int>(col & 31); }
SPARSEKIT_BOTH bool test_bit(uint32_t word, int bit) { return (word >> bit) & 1u; }
SPARSEKIT_BOTH uint32_t one_bit(int bit) { return 1u << bit; }

// The bits of a word that hold elements when `valid` (1..32) of them do.
SPARSEKIT_BOTH uint32_t valid_bits(int64_t valid) { return valid >= kWordBits ? ~0u : (1u << valid) - 1u; }

#ifndef __CUDACC__

inline int popcount32(uint32_t word) { return __builtin_popcount(word); }
inline int lowest_bit(uint32_t word) { return __builtin_ctz(word); }

// The `count` lowest set bits of word.
inline uint32_t lowest_bits(uint32_t word, int64_t count) {
  if (count >= popcount32(word)) return word;
  uint32_t taken = 0;
  for (; count > 0; --count) {
    taken |= word & (~word + 1u);
    word &= word - 1u;
  }
  return taken;
}

// 32 bytes (zero or not) -> word.
inline uint32_t pack32(const uint8_t* bytes) {
#if defined(__SSE2__)
  const __m128i zero = _mm_setzero_si128();
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16));
  const uint32_t low_zero = static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(low, zero)));
  const uint32_t high_zero = static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(high, zero)));
  return ~(low_zero | (high_zero << 16));
#else
  uint32_t word = 0;
  for (int i = 0; i < kWordBits; ++i) word |= static_cast<uint32_t>(bytes[i] != 0) << i;
  return word;
#endif
}

// word -> 32 bytes of 0 or 1.
inline void unpack32(uint32_t word, uint8_t* bytes) {
  for (int i = 0; i < kWordBits; ++i) bytes[i] = static_cast<uint8_t>((word >> i) & 1u);
}

#endif  // __CUDACC__

}  // namespace sparsekit
