// SPDX-License-Identifier: Apache-2.0
// Packed masks on the CPU: packing, unpacking, counting, and where(mask, weight, 0).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace sparsekit {

// A mask of `rows` x `cols` bytes (zero or not) -> words; the padding bits become zero.
void pack_mask(const uint8_t* mask, uint32_t* words, int64_t rows, int64_t cols, int threads);

// words -> `rows` x `cols` bytes of 0 or 1.
void unpack_mask(const uint32_t* words, uint8_t* mask, int64_t rows, int64_t cols, int threads);

// Number of set bits in `count` words.
int64_t popcount(const uint32_t* words, int64_t count, int threads);

// The words of one mask at two moments.
struct MaskPair {
  const uint32_t *before, *after;
  int64_t count;  // words of each
};

// counts[3 * i ...]: set bits of pairs[i].before, of pairs[i].after, and of both at once.
void mask_counts(const std::vector<MaskPair>& pairs, int64_t* counts, int threads, const std::string& force);

// A weight [rows, cols], its mask words, and where the masked weight goes (which may be the weight itself).
// spatial > 1 is channels-last storage: in a row, the element of channel c and position p lies at p * (cols / spatial) + c,
// its bit is column c * spatial + p.
struct MaskedTensor {
  const void* weight;
  const uint32_t* words;
  void* out;
  int64_t rows, cols, spatial;
};

// out = where(bit, weight, 0) for every tensor, elements of 2, 4 or 8 bytes copied bit by bit.
void mask_weights(std::vector<MaskedTensor> tensors, int itemsize, int threads, const std::string& force);

}  // namespace sparsekit
