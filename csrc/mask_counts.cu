// SPDX-License-Identifier: Apache-2.0
// Bits kept before, after and at both moments, for a list of masks in one pass over both lists.
#include "device.cuh"
#include "mask_cuda.h"

namespace sparsekit::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kQuads = 4;  // 16-byte loads of each mask that a thread has under way
constexpr int64_t kBlockWords = int64_t{4} * kQuads * kThreads;
constexpr int kPairsPerLaunch = 120;

struct Table {
  MaskPair pairs[kPairsPerLaunch];
  int64_t first_block[kPairsPerLaunch + 1];
  unsigned long long* counts;  // of the first pair
  int count;
};
static_assert(sizeof(Table) <= 4096, "the table must fit in the 4 KiB of kernel arguments");

struct Parts {
  unsigned warps[3][kWarps];
};

struct Sums {
  unsigned before = 0, after = 0, both = 0;

  __device__ void add(uint32_t old_bits, uint32_t new_bits) {
    before += __popc(old_bits);
    after += __popc(new_bits);
    both += __popc(old_bits & new_bits);
  }
  __device__ void add(const uint4& old_bits, const uint4& new_bits) {
    add(old_bits.x, new_bits.x);
    add(old_bits.y, new_bits.y);
    add(old_bits.z, new_bits.z);
    add(old_bits.w, new_bits.w);
  }
};

__device__ inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) == 0; }

// The share of one thread in words [first, first + kBlockWords) of a pair.
__device__ Sums count_words(const MaskPair& pair, int64_t first) {
  Sums sums;
  if (aligned(pair.before) && aligned(pair.after) && first + kBlockWords <= pair.count) {
    const uint4* const before = reinterpret_cast<const uint4*>(pair.before + first);
    const uint4* const after = reinterpret_cast<const uint4*>(pair.after + first);
    uint4 old_bits[kQuads], new_bits[kQuads];
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      old_bits[i] = load(before + i * kThreads + threadIdx.x);
      new_bits[i] = load(after + i * kThreads + threadIdx.x);
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) sums.add(old_bits[i], new_bits[i]);
    return sums;
  }
  const int64_t last = pair.count < first + kBlockWords ? pair.count : first + kBlockWords;
  for (int64_t word = first + threadIdx.x; word < last; word += kThreads) sums.add(pair.before[word], pair.after[word]);
  return sums;
}

__global__ void mask_counts_kernel(const __grid_constant__ Table table) {
  SPARSEKIT_SHARED(Parts, parts);
  int index = 0;  // of the last pair that starts at or before this block; empty pairs have no block
  for (int high = table.count; high - index > 1;) {
    const int middle = (index + high) / 2;
    if (table.first_block[middle] <= blockIdx.x) index = middle;
    else high = middle;
  }
  const Sums sums = count_words(table.pairs[index], (blockIdx.x - table.first_block[index]) * kBlockWords);
  const unsigned before = __reduce_add_sync(~0u, sums.before), after = __reduce_add_sync(~0u, sums.after);
  const unsigned both = __reduce_add_sync(~0u, sums.both);
  if ((threadIdx.x & 31) == 0) {
    parts.warps[0][threadIdx.x >> 5] = before;
    parts.warps[1][threadIdx.x >> 5] = after;
    parts.warps[2][threadIdx.x >> 5] = both;
  }
  __syncthreads();
  if (threadIdx.x >= 3) return;
  unsigned total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += parts.warps[threadIdx.x][warp];
  if (total != 0) atomicAdd(table.counts + 3 * index + threadIdx.x, static_cast<unsigned long long>(total));
}

}  // namespace

int mask_counts(const std::vector<MaskPair>& pairs, int64_t* counts, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess || pairs.empty()) return guard.code();
  cudaError_t code = cudaMemsetAsync(counts, 0, 3 * pairs.size() * sizeof(int64_t), reinterpret_cast<cudaStream_t>(stream));
  for (size_t next = 0; next < pairs.size() && code == cudaSuccess;) {
    Table table{};
    table.counts = reinterpret_cast<unsigned long long*>(counts) + 3 * next;
    for (; next < pairs.size() && table.count < kPairsPerLaunch; ++next, ++table.count) {
      const int64_t blocks = (pairs[next].count + kBlockWords - 1) / kBlockWords;
      table.pairs[table.count] = pairs[next];
      table.first_block[table.count + 1] = table.first_block[table.count] + blocks;
    }
    const unsigned blocks = static_cast<unsigned>(table.first_block[table.count]);
    if (blocks == 0) continue;
    code = launch(&mask_counts_kernel, blocks, kThreads, stream, false, table);
  }
  return code;
}

}  // namespace sparsekit::cuda
