// SPDX-License-Identifier: Apache-2.0
// Tiny kernels with and without a race, to see what the detector finds.
#pragma once
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <string>
#include <vector>

#include "device.cuh"

namespace races {

// How a value goes from one thread to the others: through shared memory, and from kGrid on through global memory.
enum class Probe {
  kBarrier, kNothing, kExchange, kWarp, kAcrossWarps, kLater, kGrid, kBlocks, kAtomics, kMixed, kVolatile, kEnd
};

constexpr const char* kProbes[] = {"barrier", "nothing", "exchange", "warp",  "across_warps", "later",
                                   "grid",    "blocks",  "atomics",  "mixed", "volatile"};

inline Probe probe_named(const std::string& name) {
  int at = 0;
  while (at < static_cast<int>(Probe::kEnd) && name != kProbes[at]) ++at;
  return static_cast<Probe>(at);
}

// What several threads do to one cell without waiting for each other.
inline void meet_at(Probe probe, unsigned* cell, unsigned* out) {
  if (probe == Probe::kAtomics) atomicAdd(cell, 1u);
  else if (probe == Probe::kVolatile) *static_cast<volatile unsigned*>(cell) = 7;
  else if (threadIdx.x != 0) return;
  else if (probe == Probe::kBlocks) *cell = 7;
  else if (blockIdx.x == 0) atomicAdd(cell, 1u);
  else *out = *cell;
}

// cell: one for all blocks; out: one for each thread.
inline void probe_kernel(Probe probe, unsigned* cell, unsigned* out) {
  if (probe > Probe::kGrid) return meet_at(probe, cell, out);
  SPARSEKIT_SHARED(unsigned, shared);
  const unsigned thread = static_cast<unsigned>(sparsekit::cuda::thread_index());
  unsigned* const place = probe == Probe::kGrid ? cell : &shared;
  if (probe == Probe::kLater) __syncthreads();
  if (probe == Probe::kGrid ? thread == 0 : threadIdx.x == 0) *place = 7;
  if (probe == Probe::kBarrier) __syncthreads();
  if (probe == Probe::kExchange) __shfl_sync(sparsekit::cuda::kAll, thread, 0);
  if (probe == Probe::kWarp || probe == Probe::kAcrossWarps) __syncwarp();
  if (probe == Probe::kGrid) cooperative_groups::this_grid().sync();
  const bool of_warp = probe == Probe::kExchange || probe == Probe::kWarp;
  if (!of_warp || threadIdx.x < 32) out[thread] = *place;
  if (probe == Probe::kLater) __syncthreads();
}

// Two blocks of two warps.
inline void run_probe(Probe probe) {
  std::vector<unsigned> out(128);
  unsigned cell = 0;
  sparsekit::cuda::launch(&probe_kernel, 2, 64, 0, probe == Probe::kGrid, probe, &cell, out.data());
}

}  // namespace races
