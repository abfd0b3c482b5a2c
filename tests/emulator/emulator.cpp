// SPDX-License-Identifier: Apache-2.0
#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "ordering.h"
#include "switch.h"

namespace emulator {

struct Barrier {
  unsigned arrived = 0;
  uint64_t generation = 0;
  // Two in turn: a thread that is slow to go on must not see what others did on their way to the next wait.
  uint64_t tags[2] = {};
};

struct Warp {
  Barrier barrier;
  uint64_t values[2][kWarp];
};

struct Block {
  Dim3 index{0, 0, 0};
  Barrier barrier;
  unsigned threads = 0;
  std::vector<Warp> warps;
  std::map<const void*, std::unique_ptr<char[]>> shared;
};

// What a thread knows of itself.
struct Thread {
  Dim3 index{0, 0, 0};
  Block* block = nullptr;
  int lane = 0, warp = 0;
};

Dim3 threadIdx, blockIdx, blockDim, gridDim;
void (*at_grid_barrier)() = nullptr;

namespace {

constexpr size_t kStack = (ordering::kWatched ? 256 : 96) * 1024;

struct Fiber {
  Thread thread;
  void* stack_pointer = nullptr;
  void* identity = nullptr;  // to the sanitizer
  std::unique_ptr<char[]> stack;
  const Barrier* waits_for = nullptr;
  uint64_t generation = 0;
  unsigned exchanges = 0;
  bool done = false;
};

std::vector<std::unique_ptr<Fiber>> pool;
Fiber* current = nullptr;
void* scheduler = nullptr;
void* scheduler_identity = nullptr;
const std::function<void()>* work = nullptr;
Barrier grid_barrier;
uint64_t kernel_start = 0, kernel_end = 0;  // tags
std::string unordered;  // ",name:line,name:line,"
unsigned live_threads = 0;
std::mt19937 random_order;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %u, thread %u)\n", what, current ? current->thread.block->index.x : 0,
               current ? current->thread.index.x : 0);
  std::abort();
}

int number_from(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

bool orders_memory(Place place) {
  if (unordered.empty()) return true;
  const char* const slash = std::strrchr(place.file, '/');
  const std::string name = slash ? slash + 1 : place.file;
  return unordered.find("," + name + ":" + std::to_string(place.line) + ",") == std::string::npos;
}

void leave() {
  ordering::change_to(scheduler_identity);
  emulator_switch(&current->stack_pointer, scheduler);
}

void enter() {
  ordering::acquire(&kernel_start);
  (*work)();
  ordering::release(&kernel_end);
  current->done = true;
  leave();
  fail("a finished thread went on");
}

void wait_at(Barrier* barrier, unsigned expected, bool orders) {
  uint64_t* const tag = &barrier->tags[barrier->generation % 2];
  if (orders) ordering::release(tag);
  if (++barrier->arrived == expected) {
    barrier->arrived = 0;
    ++barrier->generation;
    if (barrier == &grid_barrier && at_grid_barrier) at_grid_barrier();
  } else {
    current->waits_for = barrier;
    current->generation = barrier->generation;
    leave();
  }
  if (orders) ordering::acquire(tag);
}

void prepare(Fiber* fiber) {
  if (!fiber->stack) {
    fiber->stack.reset(new char[kStack]);
    fiber->identity = ordering::new_thread();
  }
  const uintptr_t top = (reinterpret_cast<uintptr_t>(fiber->stack.get()) + kStack) & ~uintptr_t{63};
  void** frame = reinterpret_cast<void**>(top) - 8;  // leaves the stack as a call instruction would
  frame[6] = reinterpret_cast<void*>(&enter);
  fiber->stack_pointer = frame;
  fiber->waits_for = nullptr;
  fiber->done = false;
  fiber->exchanges = 0;
}

void run_blocks(unsigned first, unsigned count, unsigned threads) {
  const ordering::Unwatched own_memory;
  std::vector<std::unique_ptr<Block>> blocks;
  // One after the other is how the emulator runs blocks, not an order that a device keeps: threads that are watched are
  // never the same ones.
  const size_t base = ordering::kWatched ? size_t{first} * threads : 0;
  while (pool.size() < base + size_t{count} * threads) pool.push_back(std::make_unique<Fiber>());
  for (unsigned b = 0; b < count; ++b) {
    blocks.push_back(std::make_unique<Block>());
    blocks[b]->index = {first + b, 0, 0};
    blocks[b]->threads = threads;
    blocks[b]->warps.resize((threads + kWarp - 1) / kWarp);
    for (unsigned t = 0; t < threads; ++t) {
      Fiber* const fiber = pool[base + size_t{b} * threads + t].get();
      prepare(fiber);
      fiber->thread = {{t, 0, 0}, blocks[b].get(), static_cast<int>(t % kWarp), static_cast<int>(t / kWarp)};
    }
  }
  live_threads = count * threads;
  std::vector<size_t> order(size_t{count} * threads);
  std::iota(order.begin(), order.end(), base);
  for (bool moved = true; moved;) {
    moved = false;
    // Turning and mirroring the order is enough to let every thread run before every other one.
    std::rotate(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(random_order() % order.size()), order.end());
    if (random_order() & 1) std::reverse(order.begin(), order.end());
    for (const size_t at : order) {
      Fiber* const fiber = pool[at].get();
      if (fiber->done || (fiber->waits_for && fiber->waits_for->generation == fiber->generation)) continue;
      fiber->waits_for = nullptr;
      current = fiber;
      threadIdx = fiber->thread.index;
      blockIdx = fiber->thread.block->index;
      ordering::change_to(fiber->identity);
      emulator_switch(&scheduler, fiber->stack_pointer);
      moved = true;
    }
  }
  for (const size_t at : order) {
    current = pool[at].get();
    if (!current->done) fail("waits at a barrier that others never reach");
  }
  current = nullptr;
}

const uint64_t* meet(unsigned mask, uint64_t value, bool orders) {
  if (mask != ~0u) fail("expected a full warp mask");
  Thread& thread = current->thread;
  Warp& warp = thread.block->warps[static_cast<size_t>(thread.warp)];
  uint64_t* const values = warp.values[current->exchanges++ % 2];
  values[thread.lane] = value;
  const unsigned lanes = std::min<unsigned>(kWarp, thread.block->threads - static_cast<unsigned>(thread.warp) * kWarp);
  wait_at(&warp.barrier, lanes, orders);
  return values;
}

}  // namespace

int lane() { return current->thread.lane; }
int processors() { return number_from("EMULATOR_PROCESSORS", 3); }

void run_grid(unsigned blocks, unsigned threads, bool cooperative, const std::function<void()>& body) {
  random_order.seed(static_cast<unsigned>(number_from("EMULATOR_SEED", 0)));
  blockDim = {threads, 1, 1};
  gridDim = {blocks, 1, 1};
  grid_barrier = {};
  work = &body;
  const char* const places = std::getenv("EMULATOR_UNORDERED");
  unordered = places ? "," + std::string(places) + "," : "";
  scheduler_identity = ordering::this_thread();
  ordering::release(&kernel_start);
  if (cooperative) {
    run_blocks(0, blocks, threads);
  } else {
    std::vector<unsigned> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random_order);
    for (const unsigned block : order) run_blocks(block, 1, threads);
  }
  ordering::acquire(&kernel_end);
}

void sync_block(Place place) {
  wait_at(&current->thread.block->barrier, current->thread.block->threads, orders_memory(place));
}
void sync_grid(Place place) { wait_at(&grid_barrier, live_threads, orders_memory(place)); }
void sync_warp(unsigned mask) { meet(mask, 0, true); }
const uint64_t* exchange(unsigned mask, uint64_t value) { return meet(mask, value, false); }

void* shared_memory(const void* id, size_t bytes) {
  const ordering::Unwatched own_memory;
  std::unique_ptr<char[]>& memory = current->thread.block->shared[id];
  if (!memory) {
    memory.reset(new char[bytes]);
    std::memset(memory.get(), 0xA5, bytes);
  }
  return memory.get();
}

}  // namespace emulator
