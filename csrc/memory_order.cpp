// SPDX-License-Identifier: Apache-2.0
#include "memory_order.h"

#include <algorithm>

#include "pack_bits.h"
#include "parallel.h"
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define SPARSEKIT_X86_ORDER 1
#endif

namespace sparsekit {
namespace {

// For more positions than this a word holds too few bits of one of them to be worth an instruction.
constexpr int64_t kMostExtracted = 16;
// Words that one task handles.
constexpr int64_t kTaskWords = 1 << 12;

// Bits of 32 channels, `spatial` words, that belong to each position: selected[position * spatial + word].
std::vector<uint32_t> selections(int64_t spatial) {
  std::vector<uint32_t> selected(static_cast<size_t>(spatial * spatial));
  for (int64_t bit = 0; bit < spatial * kWordBits; ++bit) {
    selected[static_cast<size_t>(bit % spatial * spatial + word_of(bit))] |= one_bit(bit_of(bit));
  }
  return selected;
}

// Sets `bits` from bit `at` on, which are zero so far.
void append(uint32_t* words, int64_t at, uint32_t bits) {
  words[word_of(at)] |= bits << bit_of(at);
  if (bit_of(at) != 0) words[word_of(at) + 1] |= bits >> (kWordBits - bit_of(at));
}

// One row: `from` has the words of whole groups of 32 channels, `to` is zero and one word longer than the row.
struct Row {
  const uint32_t* from;
  uint32_t* to;
  int64_t channels, spatial;
};

void order_bytes(const Row& row, std::vector<uint8_t>& bytes) {
  const int64_t groups = words_per_row(row.channels);
  bytes.resize(static_cast<size_t>(groups * row.spatial * kWordBits));
  for (int64_t word = 0; word < groups * row.spatial; ++word) unpack32(row.from[word], bytes.data() + word * kWordBits);
  uint8_t column[kWordBits];
  for (int64_t position = 0; position < row.spatial; ++position) {
    for (int64_t channel = 0; channel < row.channels; channel += kWordBits) {
      const uint8_t* const first = bytes.data() + channel * row.spatial + position;
      for (int i = 0; i < kWordBits; ++i) column[i] = first[i * row.spatial];
      append(row.to, position * row.channels + channel, pack32(column) & valid_bits(row.channels - channel));
    }
  }
}

#ifdef SPARSEKIT_X86_ORDER
__attribute__((target("bmi2,popcnt"))) void order_extracted(const Row& row, const uint32_t* selected) {
  for (int64_t channel = 0; channel < row.channels; channel += kWordBits) {
    const uint32_t* const from = row.from + channel / kWordBits * row.spatial;
    for (int64_t position = 0; position < row.spatial; ++position) {
      uint64_t bits = 0;
      int shift = 0;
      for (int64_t word = 0; word < row.spatial; ++word) {
        const uint32_t own = selected[position * row.spatial + word];
        bits |= static_cast<uint64_t>(_pext_u32(from[word], own)) << shift;
        shift += __builtin_popcount(own);
      }
      const uint32_t valid = valid_bits(row.channels - channel);
      append(row.to, position * row.channels + channel, static_cast<uint32_t>(bits) & valid);
    }
  }
}
#endif

bool extracts(int64_t spatial, const std::string& force) {
#ifdef SPARSEKIT_X86_ORDER
  static const bool supported = __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  return supported && spatial <= kMostExtracted && force != "scalar";
#else
  (void)spatial, (void)force;
  return false;
#endif
}

}  // namespace

std::vector<uint32_t> in_memory_order(const uint32_t* words, int64_t rows, int64_t cols, int64_t spatial, int threads,
                                      const std::string& force) {
  const int64_t per_row = words_per_row(cols), channels = cols / spatial, padded = words_per_row(channels) * spatial;
  std::vector<uint32_t> ordered(static_cast<size_t>(rows * per_row));
  if (ordered.empty()) return ordered;
  const bool extracting = extracts(spatial, force);
  const std::vector<uint32_t> selected = extracting ? selections(spatial) : std::vector<uint32_t>{};
  const int64_t rows_per_task = std::max<int64_t>(1, kTaskWords / per_row), tasks = (rows + rows_per_task - 1) / rows_per_task;
  parallel_for(threads, tasks, [&](int64_t task) {
    std::vector<uint32_t> from(static_cast<size_t>(padded)), to(static_cast<size_t>(per_row + 1));
    std::vector<uint8_t> bytes;
    for (int64_t r = task * rows_per_task; r < std::min(rows, (task + 1) * rows_per_task); ++r) {
      std::copy(words + r * per_row, words + (r + 1) * per_row, from.begin());
      std::fill(to.begin(), to.end(), 0u);
      const Row row{from.data(), to.data(), channels, spatial};
#ifdef SPARSEKIT_X86_ORDER
      if (extracting) order_extracted(row, selected.data());
#endif
      if (!extracting) order_bytes(row, bytes);
      std::copy(to.begin(), to.end() - 1, ordered.begin() + r * per_row);
    }
  });
  return ordered;
}

}  // namespace sparsekit
