// SPDX-License-Identifier: Apache-2.0
#include "mask_cpu.h"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "lanes.h"
#include "memory_order.h"
#include "pack_bits.h"
#include "parallel.h"

namespace sparsekit {
namespace {

// Words that one task handles: enough to be worth a thread, few enough to share the work evenly.
constexpr int64_t kTaskWords = 1 << 13;

int64_t tasks_for(int64_t words) { return (words + kTaskWords - 1) / kTaskWords; }

// Calls visit(word, first element, number of elements) for words [first, last) of a mask [rows, cols].
template <class Visit>
void for_each_word(int64_t first, int64_t last, int64_t cols, const Visit& visit) {
  const int64_t per_row = words_per_row(cols);
  int64_t row = first / per_row, in_row = first % per_row;
  for (int64_t word = first; word < last; ++word) {
    visit(word, row * cols + in_row * kWordBits, std::min<int64_t>(kWordBits, cols - in_row * kWordBits));
    if (++in_row == per_row) {
      in_row = 0;
      ++row;
    }
  }
}

// Shares the words of a mask [rows, cols] between threads.
template <class Visit>
void share_words(int64_t rows, int64_t cols, int threads, const Visit& visit) {
  const int64_t words = rows * words_per_row(cols);
  parallel_for(threads, tasks_for(words), [&](int64_t task) {
    for_each_word(task * kTaskWords, std::min(words, (task + 1) * kTaskWords), cols, visit);
  });
}

template <class U>
void mask_words(const MaskedTensor& tensor, int64_t first, int64_t last, KeepFn<U> keep) {
  const U* const weight = static_cast<const U*>(tensor.weight);
  U* const out = static_cast<U*>(tensor.out);
  if (tensor.cols % kWordBits == 0) {
    keep(weight + first * kWordBits, tensor.words + first, last - first, out + first * kWordBits);
    return;
  }
  for_each_word(first, last, tensor.cols, [&](int64_t word, int64_t at, int64_t valid) {
    if (valid == kWordBits) {
      keep(weight + at, tensor.words + word, 1, out + at);
      return;
    }
    for (int bit = 0; bit < valid; ++bit) out[at + bit] = test_bit(tensor.words[word], bit) ? weight[at + bit] : U{0};
  });
}

// A stretch of words of a tensor.
struct Task {
  size_t tensor;
  int64_t first, last;
};

std::vector<Task> cut_tasks(const std::vector<MaskedTensor>& tensors) {
  std::vector<Task> tasks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t words = tensors[i].rows * words_per_row(tensors[i].cols);
    for (int64_t first = 0; first < words; first += kTaskWords) {
      tasks.push_back({i, first, std::min(words, first + kTaskWords)});
    }
  }
  return tasks;
}

template <class U>
void mask_all(const std::vector<MaskedTensor>& tensors, int threads, KeepFn<U> keep) {
  const std::vector<Task> tasks = cut_tasks(tensors);
  parallel_for(threads, static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    mask_words<U>(tensors[task.tensor], task.first, task.last, keep);
  });
}

}  // namespace

void pack_mask(const uint8_t* mask, uint32_t* words, int64_t rows, int64_t cols, int threads) {
  share_words(rows, cols, threads, [&](int64_t word, int64_t at, int64_t valid) {
    if (valid == kWordBits) {
      words[word] = pack32(mask + at);
      return;
    }
    uint8_t padded[kWordBits] = {};
    std::copy(mask + at, mask + at + valid, padded);
    words[word] = pack32(padded);
  });
}

void unpack_mask(const uint32_t* words, uint8_t* mask, int64_t rows, int64_t cols, int threads) {
  share_words(rows, cols, threads, [&](int64_t word, int64_t at, int64_t valid) {
    if (valid == kWordBits) {
      unpack32(words[word], mask + at);
      return;
    }
    for (int bit = 0; bit < valid; ++bit) mask[at + bit] = test_bit(words[word], bit) ? 1 : 0;
  });
}

int64_t popcount(const uint32_t* words, int64_t count, int threads) {
  std::vector<int64_t> counts(static_cast<size_t>(tasks_for(count)));
  parallel_for(threads, tasks_for(count), [&](int64_t task) {
    int64_t bits = 0;
    for (int64_t i = task * kTaskWords; i < std::min(count, (task + 1) * kTaskWords); ++i) bits += popcount32(words[i]);
    counts[static_cast<size_t>(task)] = bits;
  });
  int64_t total = 0;
  for (const int64_t bits : counts) total += bits;
  return total;
}

void mask_counts(const std::vector<MaskPair>& pairs, int64_t* counts, int threads, const std::string& force) {
  const Lanes& lanes = choose_lanes(force);
  std::vector<Task> tasks;
  int64_t words = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    words += pairs[i].count;
    for (int64_t first = 0; first < pairs[i].count; first += kTaskWords) {
      tasks.push_back({i, first, std::min(pairs[i].count, first + kTaskWords)});
    }
  }
  std::vector<std::array<int64_t, 3>> sums(tasks.size());
  // A thread costs as much as counting this many words.
  const int64_t worth = std::min<int64_t>(threads, 1 + words / (8 * kTaskWords));
  parallel_for(static_cast<int>(worth), static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    const MaskPair& pair = pairs[task.tensor];
    lanes.count(pair.before + task.first, pair.after + task.first, task.last - task.first, sums[static_cast<size_t>(i)].data());
  });
  std::fill(counts, counts + 3 * pairs.size(), 0);
  for (size_t i = 0; i < tasks.size(); ++i) {
    for (size_t kind = 0; kind < 3; ++kind) counts[3 * tasks[i].tensor + kind] += sums[i][kind];
  }
}

void mask_weights(std::vector<MaskedTensor> tensors, int itemsize, int threads, const std::string& force) {
  const Lanes& lanes = choose_lanes(force);
  int64_t numel = 0;
  for (const MaskedTensor& tensor : tensors) numel += tensor.rows * tensor.cols;
  // A thread costs as much as masking this many elements.
  threads = static_cast<int>(std::min<int64_t>(threads, 1 + numel / (kTaskWords * kWordBits)));
  std::vector<std::vector<uint32_t>> own;
  order_by_memory(tensors, own, threads, force);
  switch (itemsize) {
    case 2: return mask_all<uint16_t>(tensors, threads, lanes.two.keep);
    case 4: return mask_all<uint32_t>(tensors, threads, lanes.four.keep);
    case 8: return mask_all<uint64_t>(tensors, threads, lanes.eight.keep);
    default: throw std::invalid_argument("mask_weights: itemsize: expected 2, 4 or 8, got " + std::to_string(itemsize));
  }
}

}  // namespace sparsekit
