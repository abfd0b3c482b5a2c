// SPDX-License-Identifier: Apache-2.0
// The inner loops that run once per element or word, for the instruction sets chosen at run time.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "select.h"

namespace sparsekit {

// For `count` full words of scores: above = bits of keys >= high, inside = bits of candidates. Returns the number of NaN.
template <class U>
using ClassifyFn = int64_t (*)(const U* scores, int64_t count, KeySpec<U> spec, Bracket<SignedOf<U>> bracket, uint32_t* above,
                               uint32_t* inside);

// For `count` full words: out = where(bit, weight, 0).
template <class U>
using KeepFn = void (*)(const U* weight, const uint32_t* words, int64_t count, U* out);

// Adds the set bits of before, of after, and of both to totals[0], totals[1] and totals[2].
using CountFn = void (*)(const uint32_t* before, const uint32_t* after, int64_t count, int64_t* totals);

template <class U>
struct LaneFunctions {
  ClassifyFn<U> classify;
  KeepFn<U> keep;
};

struct Lanes {
  LaneFunctions<uint16_t> two;
  LaneFunctions<uint32_t> four;
  LaneFunctions<uint64_t> eight;
  CountFn count;
};

template <class U>
const LaneFunctions<U>& of_width(const Lanes& lanes) {
  if constexpr (sizeof(U) == 2) return lanes.two;
  else if constexpr (sizeof(U) == 4) return lanes.four;
  else return lanes.eight;
}

// Names of the paths this processor can run, worst first.
std::vector<std::string> lane_paths();

// The path of that name, or the best one for "". Throws std::invalid_argument for a name not in lane_paths().
const Lanes& choose_lanes(const std::string& name);

}  // namespace sparsekit
