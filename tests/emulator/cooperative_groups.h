// SPDX-License-Identifier: Apache-2.0
// The grid barrier on the emulator.
#pragma once
#include "cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
  void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const { emulator::sync_grid({file, line}); }
};
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
