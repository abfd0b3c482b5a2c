// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels on the CPU: every thread of a grid is a fiber, and fibers change only where threads wait for each other.
//
// It serves the tests on machines without a GPU. Results, barriers and warp exchanges are those of a device, except that
// memory is sequentially consistent. The order in which waiting threads go on is drawn from EMULATOR_SEED, so a missing
// barrier shows as a result that depends on the seed. EMULATOR_PROCESSORS is the number of multiprocessors. A barrier
// that some threads never reach, or a warp exchange with a partial mask, is reported and stops the process.
// A build with EMULATOR_RACES finds unordered accesses, see ordering.h; there EMULATOR_UNORDERED=name.cuh:12,name.cu:34
// lists barriers that order no memory, as if they were missing.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulator {

constexpr int kWarp = 32;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// The running thread's place in its block and in its warp.
int lane();
extern Dim3 threadIdx, blockIdx, blockDim, gridDim;

// Runs body() in every thread. cooperative: all blocks live at once and may wait for each other; otherwise one after the
// other, in an order drawn from the seed.
void run_grid(unsigned blocks, unsigned threads, bool cooperative, const std::function<void()>& body);

// Where in the source a thread waits.
struct Place {
  const char* file;
  int line;
};

// Barriers, which also order memory.
void sync_block(Place place);
void sync_grid(Place place);
void sync_warp(unsigned mask);

// Called when all threads have come to the barrier of the grid; may be null.
extern void (*at_grid_barrier)();

// Gives `value` to the warp and returns the 32 values of its lanes; they stay valid until the lane's next exchange.
// It orders no memory.
const uint64_t* exchange(unsigned mask, uint64_t value);

// Memory of the block, the same for all its threads, filled with 0xA5; `id` tells the variables of a kernel apart.
void* shared_memory(const void* id, size_t bytes);

template <class T>
T& shared(const void* id) {
  return *static_cast<T*>(shared_memory(id, sizeof(T)));
}

int processors();

}  // namespace emulator
