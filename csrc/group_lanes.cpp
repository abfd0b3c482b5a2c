// SPDX-License-Identifier: Apache-2.0
// Inner loops of structured masks per instruction set and the choice between them.
#include "group_lanes.h"

#include <limits>

#include "lanes.h"
#include "score_values.h"
#include "tile_patterns.h"

#define LANES_NAMESPACE group_scalar
#define LANES_TARGET
#define LANES_BYTES 16
#include "group_lanes.inl"

#if defined(__x86_64__) && defined(__GNUC__)
#define SPARSEKIT_X86_GROUP_LANES 1

#define LANES_NAMESPACE group_avx2
#define LANES_TARGET __attribute__((target("avx2,bmi,bmi2,popcnt")))
#define LANES_BYTES 32
#include "group_lanes.inl"

#define LANES_NAMESPACE group_avx512
#define LANES_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,popcnt")))
#define LANES_BYTES 64
#include "group_lanes.inl"
#endif

namespace sparsekit {

const GroupLanes& choose_group_lanes(const std::string& name) {
  choose_lanes(name);  // throws for what this processor does not have
#ifdef SPARSEKIT_X86_GROUP_LANES
  static const std::string best = lane_paths().back();
  const std::string& path = name.empty() ? best : name;
  if (path == "avx512") return group_avx512::kGroupTable;
  if (path == "avx2") return group_avx2::kGroupTable;
#endif
  return group_scalar::kGroupTable;
}

}  // namespace sparsekit
