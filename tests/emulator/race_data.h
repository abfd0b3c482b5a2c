// SPDX-License-Identifier: Apache-2.0
// Scores that are hard to select from, and the stable sort that says which of them are kept.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "pack_bits.h"
#include "topk_mask.h"

namespace races {

using sparsekit::Dtype, sparsekit::KeyKind, sparsekit::NanPolicy;
using Random = std::mt19937_64;

// Runs the kernels of structured masks; see race_structured.cpp.
int structured(uint64_t seed, int64_t count);

inline int64_t below(Random& random, int64_t end) { return static_cast<int64_t>(random() % static_cast<uint64_t>(end)); }

enum Content { kNormal, kEqual, kTwo, kFew, kSteps, kClose, kSpread, kContents };

inline double draw(Random& random, Content content) {
  const double x = std::normal_distribution<double>()(random);
  switch (content) {
    case kEqual: return 1.5;
    case kTwo: return x < 0.3 ? 1 : 2;
    case kFew: return std::round(2 * x) / 2;
    case kSteps: return std::round(5 * x) / 5;  // many equal scores, and few enough to be candidates
    case kClose: return 1 + 1e-4 * x;
    case kSpread: return random() % 4 == 0 ? std::exp(20 * x) : 1 + 1e-6 * x;  // most of a bracket in one bin
    default: return x;
  }
}

// A tensor in memory that both sides read; the scores begin at a multiple of 16 bytes, or one element behind.
struct Tensor {
  int64_t rows, cols;
  Dtype dtype;
  bool shifted;
  std::vector<uint64_t> memory;
  std::vector<uint32_t> words;

  Tensor(int64_t r, int64_t c, Dtype type, bool shift)
      : rows(r), cols(c), dtype(type), shifted(shift), memory(static_cast<size_t>(r * c * itemsize(type) / 8 + 4)),
        words(static_cast<size_t>(r * sparsekit::words_per_row(c)), 0xdeadbeefu) {}

  int64_t numel() const { return rows * cols; }
  char* scores() { return reinterpret_cast<char*>(memory.data()) + (shifted ? itemsize(dtype) : 0); }
  char* element(int64_t i) { return scores() + i * itemsize(dtype); }

  void set(int64_t i, double value) {
    const float narrow = static_cast<float>(value);
    uint64_t bits = 0;
    if (dtype == Dtype::kFloat64) std::memcpy(&bits, &value, 8);
    else if (dtype == Dtype::kFloat16) bits = _cvtss_sh(narrow, 0);
    else std::memcpy(&bits, &narrow, 4);
    if (dtype == Dtype::kBFloat16) bits >>= 16;
    std::memcpy(element(i), &bits, static_cast<size_t>(itemsize(dtype)));
  }

  double get(int64_t i) {
    uint64_t bits = 0;
    std::memcpy(&bits, element(i), static_cast<size_t>(itemsize(dtype)));
    if (dtype == Dtype::kFloat16) return _cvtsh_ss(static_cast<uint16_t>(bits));
    if (dtype == Dtype::kBFloat16) bits <<= 16;
    double wide;
    float narrow;
    std::memcpy(&wide, &bits, 8);
    std::memcpy(&narrow, &bits, 4);
    return dtype == Dtype::kFloat64 ? wide : static_cast<double>(narrow);
  }

  void fill(Random& random, Content content, bool with_nan) {
    for (int64_t i = 0; i < numel(); ++i) {
      const bool is_nan = with_nan && below(random, 8) == 0;
      set(i, is_nan ? std::nan("") : draw(random, content));
    }
  }
};

// How many of the values to keep: a part of them, any number, or all from the one of a rank on.
inline int64_t draw_kept(Random& random, std::vector<double> values) {
  const int64_t count = static_cast<int64_t>(values.size());
  if (count == 0) return 0;
  const int64_t parts[] = {0, 1, count / 20, count / 20, count / 8, count / 2, count, below(random, count + 1)};
  const int64_t kept = parts[below(random, 8)];
  if (kept == 0 || below(random, 3) != 0) return kept;
  std::replace_if(values.begin(), values.end(), [](double x) { return std::isnan(x); }, -HUGE_VAL);
  const auto rank = values.begin() + kept - 1;
  std::nth_element(values.begin(), rank, values.end(), std::greater<>());
  const double level = *rank;
  return std::count_if(values.begin(), values.end(), [=](double x) { return x >= level; });
}

// A list of one or two large tensors, a few small ones, or more than one launch takes.
inline std::vector<Tensor> draw_tensors(Random& random, Dtype dtype) {
  constexpr int64_t kCols[] = {1, 9, 31, 32, 33, 65, 147, 256, 500};
  const bool large = below(random, 3) == 0;
  const int64_t count = large ? 1 + below(random, 2) : below(random, 25) == 0 ? 60 : 1 + below(random, 5);
  const int64_t most = large ? 16000 : count > 5 ? 400 : 3000;
  const Content content = static_cast<Content>(below(random, kContents));
  const bool with_nan = below(random, 3) == 0;
  std::vector<Tensor> tensors;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t cols = kCols[below(random, 9)];
    const int64_t full = most / cols, rows = large ? full - below(random, full / 4 + 1) : below(random, full + 1);
    tensors.emplace_back(rows, cols, dtype, below(random, 4) == 0);
    tensors.back().fill(random, content, with_nan);
  }
  return tensors;
}

inline NanPolicy draw_policy(Random& random) {
  constexpr NanPolicy kPolicies[] = {NanPolicy::kError, NanPolicy::kError, NanPolicy::kDrop, NanPolicy::kKeep};
  return kPolicies[below(random, 4)];
}

// The bits of `kept` of the values, the first among equals; sets *nans.
inline std::vector<bool> stable_choice(const std::vector<double>& values, int64_t kept, NanPolicy policy, int64_t* nans) {
  std::vector<uint32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0u);
  const auto rank = [&](uint32_t i) { return std::isnan(values[i]) ? (policy == NanPolicy::kKeep ? 2 : 0) : 1; };
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return rank(a) != rank(b) ? rank(a) > rank(b) : rank(a) == 1 && values[a] > values[b];
  });
  *nans = std::count_if(values.begin(), values.end(), [](double x) { return std::isnan(x); });
  const int64_t count = static_cast<int64_t>(values.size());
  if (policy != NanPolicy::kKeep) kept = std::min(kept, count - *nans);
  std::vector<bool> chosen(values.size());
  for (int64_t i = 0; i < kept; ++i) chosen[order[static_cast<size_t>(i)]] = true;
  return chosen;
}

inline std::vector<double> values_of(Tensor& tensor, KeyKind key, int64_t first, int64_t count) {
  std::vector<double> values;
  for (int64_t i = first; i < first + count; ++i) {
    values.push_back(key == KeyKind::kMagnitude ? std::fabs(tensor.get(i)) : tensor.get(i));
  }
  return values;
}

// Are the words those of `chosen`, whose element `first` is the tensor's first one, with padding of zero?
inline bool holds(const Tensor& tensor, const std::vector<bool>& chosen, int64_t first) {
  const int64_t per_row = sparsekit::words_per_row(tensor.cols);
  std::vector<uint32_t> words(tensor.words.size());
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    const int64_t row = i / tensor.cols, col = i % tensor.cols;
    if (chosen[static_cast<size_t>(first + i)]) {
      words[static_cast<size_t>(row * per_row + sparsekit::word_of(col))] |= sparsekit::one_bit(sparsekit::bit_of(col));
    }
  }
  return words == tensor.words;
}

}  // namespace races
