// SPDX-License-Identifier: Apache-2.0
// The kernels of structured masks for race_check: on whole numbers, whose sums are the same in any order.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "race_data.h"
#include "structured_cuda.h"

namespace races {
namespace {

using namespace sparsekit;

void require_equal(double got, double want, const char* what) {
  if (got == want) return;
  std::fprintf(stderr, "race_check: wrong result: %s: %g instead of %g\n", what, got, want);
  std::exit(1);
}

void fill(Random& random, Tensor& tensor) {
  for (int64_t i = 0; i < tensor.numel(); ++i) tensor.set(i, static_cast<double>(below(random, 9)) - 4);
}

void score_units(Random& random) {
  // Rows and columns of the scores and of a unit: tall, wide, small, larger than a leaf; the last ones need more parts than
  // a grid of the test has blocks.
  constexpr int64_t kShapes[][4] = {{70, 40, 70, 1}, {9, 300, 1, 300}, {40, 36, 4, 4}, {5, 700, 3, 264},
                                    {300, 8, 300, 8}, {33, 16, 2, 16}, {300, 20, 2, 1}};
  const int64_t* const shape = kShapes[below(random, 7)];
  const Dtype dtype = static_cast<Dtype>(below(random, 4));
  Tensor scores(shape[0], shape[1], dtype, below(random, 4) == 0);
  fill(random, scores);
  const UnitGrid grid = {shape[0], shape[1], shape[2], shape[3]};
  std::vector<double> out(static_cast<size_t>(grid.units())), scratch(static_cast<size_t>(cuda::group_scores_scratch(grid) + 1));
  const Reduction reduction = below(random, 3) == 0 ? Reduction::kMax : Reduction::kOne;
  require_equal(cuda::group_scores({grid, scores.scores(), out.data(), dtype, reduction, 1}, scratch.data(), 0, 0), 0, "code");
  for (int64_t unit = 0; unit < grid.units(); ++unit) {
    const int64_t a = unit / grid.wide(), b = unit % grid.wide();
    double want = 0;
    for (int64_t r = a * grid.h; r < std::min(grid.rows, (a + 1) * grid.h); ++r) {
      for (int64_t c = b * grid.w; c < std::min(grid.cols, (b + 1) * grid.w); ++c) {
        const double size = std::fabs(scores.get(r * grid.cols + c));
        want = reduction == Reduction::kMax ? std::max(want, size) : want + size;
      }
    }
    const float* const narrow = reinterpret_cast<const float*>(out.data());
    require_equal(dtype == Dtype::kFloat64 ? out[static_cast<size_t>(unit)] : narrow[unit], want, "score of a unit");
  }
  std::vector<uint32_t> bits(static_cast<size_t>(grid.high() * words_per_row(grid.wide())), 0xffffffffu);
  require_equal(cuda::expand_units({grid, bits.data(), false}, scores.words.data(), 0, 0), 0, "code");
}

void mask_groups(Random& random) {
  constexpr int64_t kSpatial[] = {1, 1, 9};
  const int64_t rows = 4 * (1 + below(random, 2)), channels = 8 * (1 + below(random, 3)), spatial = kSpatial[below(random, 3)];
  const Dtype dtype = static_cast<Dtype>(below(random, 4));
  Tensor scores(rows, channels * spatial, dtype, below(random, 4) == 0);
  fill(random, scores);
  if (below(random, 2) == 0) scores.set(below(random, scores.numel()), std::nan(""));
  const KeyKind key = static_cast<KeyKind>(below(random, 2));
  const GroupedScores problem = {scores.scores(), scores.words.data(), rows, channels, spatial, dtype, key, NanPolicy::kError};
  uint8_t invalid = 0;
  std::vector<uint16_t> scratch(static_cast<size_t>(scores.numel() / 16 + 1));
  const int64_t m = below(random, 2) == 0 ? 4 : 8;
  require_equal(cuda::nm_mask(problem, m / 2, m, &invalid, 0, 0), 0, "code");
  require_equal(cuda::transposable_nm_mask(problem, scratch.data(), &invalid, 0, 0), 0, "code");
  int64_t kept = 0;
  for (const uint32_t word : scores.words) kept += popcount32(word);
  if (invalid == 0) require_equal(static_cast<double>(kept), static_cast<double>(scores.numel() / 2), "kept by 2:4");
}

}  // namespace

int structured(uint64_t seed, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    setenv("EMULATOR_SEED", std::to_string(seed + static_cast<uint64_t>(i)).c_str(), 1);
    Random random(seed + static_cast<uint64_t>(i));
    score_units(random);
    mask_groups(random);
  }
  return 0;
}

}  // namespace races
