// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>
#include <vector>

#include "group_lanes.h"
#include "parallel.h"
#include "structured.h"

namespace sparsekit {
namespace {

constexpr int64_t kBlockCols = 1024;    // columns of narrow units that are added side by side; they stay in the L1 cache
constexpr int kLaneLevels = 8;
static_assert(1 << kLaneLevels == kLanes);
constexpr int64_t kTaskScores = 1 << 15;  // scores that are worth a task of their own

class GroupSum {
 public:
  GroupSum(const UnitScores& problem, const std::string& force)
      : problem_(problem),
        grid_(problem.grid),
        wide_(grid_.wide()),
        chunks_(grid_.chunks()),
        leaves_(grid_.leaves()),
        add_(choose_group_lanes(force).add[static_cast<int>(problem.dtype)][static_cast<int>(problem.reduction)]),
        largest_(problem.reduction == Reduction::kMax),
        halve_(choose_group_lanes(force).halve[largest_]),
        partials_(static_cast<size_t>(grid_.units() * leaves_)) {
    while (levels_ < kLaneLevels && int64_t{1} << levels_ < grid_.w) ++levels_;
  }

  void run(int threads) {
    if (grid_.w <= kLanes) add_narrow(threads);
    else add_wide(threads);
    const int64_t step = std::max<int64_t>(1, kTaskScores / leaves_), units = grid_.units();
    parallel_for(threads, ceil_divide(units, step), [&](int64_t task) {
      for (int64_t unit = task * step; unit < std::min(units, (task + 1) * step); ++unit) write(unit);
    });
  }

 private:
  // Adds `count` scores from (row, col) on to as many lanes, then those that are `stride`, 2 * `stride`, ... further.
  void add(int64_t row, int64_t col, int64_t stride, int64_t steps, int64_t count, double* lanes) const {
    const int64_t size = itemsize(problem_.dtype);
    const char* scores = static_cast<const char*>(problem_.scores) + (row * grid_.cols + col) * size;
    // Far stretches are read side by side, which hides what it costs to reach them; near ones are faster in memory order.
    const int64_t together = stride > count ? steps : 1;
    for (; steps > 0; steps -= together, scores += together * stride * size) {
      add_(scores, stride, together, count, problem_.p, lanes);
    }
  }

  // Adds adjacent pairs, then pairs of pairs, `levels` times. Both arrays are scratch; returns the one with the sums.
  double* add_pairs(double* lanes, double* sums, int64_t count, int levels) const {
    constexpr int64_t kFew = 16;  // not worth a call
    for (int level = 0; level < levels; ++level) {
      count /= 2;
      if (count > kFew) halve_(lanes, count, sums);
      else if (largest_) for (int64_t i = 0; i < count; ++i) sums[i] = combine<true>(lanes[2 * i], lanes[2 * i + 1]);
      else for (int64_t i = 0; i < count; ++i) sums[i] = combine<false>(lanes[2 * i], lanes[2 * i + 1]);
      std::swap(lanes, sums);
    }
    return lanes;
  }

  double& partial(int64_t a, int64_t b, int64_t strip, int64_t chunk) {
    return partials_[static_cast<size_t>((a * wide_ + b) * leaves_ + strip * chunks_ + chunk)];
  }

  // A unit has at most as many columns as there are lanes: the lanes of many units are one stretch of memory.
  void add_narrow(int threads) {
    const int64_t step = std::max<int64_t>(1, kBlockCols / grid_.w), blocks = ceil_divide(wide_, step);
    const int64_t strips = grid_.high() * grid_.strips();
    const int64_t batch = std::max<int64_t>(1, kTaskScores / (std::min<int64_t>(grid_.h, kStripRows) * kBlockCols));
    parallel_for(threads, ceil_divide(strips, batch) * blocks, [&](int64_t task) {
      const int64_t first = task % blocks * step, last = std::min(wide_, first + step), top = task / blocks * batch;
      for (int64_t strip = top; strip < std::min(strips, top + batch); ++strip) add_strip(strip, first, last);
    });
  }

  void add_strip(int64_t strip, int64_t first_unit, int64_t end_unit) {
    double lanes[kBlockCols], spread[2 * kBlockCols], sums[kBlockCols];
    const int64_t a = strip / grid_.strips(), s = strip % grid_.strips(), width = grid_.w;
    const int64_t left = first_unit * width, count = std::min(grid_.cols, end_unit * width) - left;
    std::fill(lanes, lanes + (end_unit - first_unit) * width, 0.0);
    const int64_t top = grid_.first_row(a, s), rows = grid_.end_row(a, s) - top;
    add(top, left, grid_.cols, rows, count, lanes);
    double* own = lanes;
    const int64_t room = int64_t{1} << levels_;  // lanes of a unit, with absent ones up to a power of two
    if (room != width) {
      own = spread;
      std::fill(spread, spread + (end_unit - first_unit) * room, 0.0);
      for (int64_t col = 0, unit = 0; col < count; col += width, ++unit) {
        std::copy(lanes + col, lanes + std::min(count, col + width), spread + unit * room);
      }
    }
    own = add_pairs(own, sums, (end_unit - first_unit) * room, levels_);
    for (int64_t b = first_unit; b < end_unit; ++b) partial(a, b, s, 0) = own[b - first_unit];
  }

  void add_wide(int threads) {
    const int64_t count = grid_.units() * leaves_;
    const int64_t size = std::min<int64_t>(grid_.h, kStripRows) * std::min<int64_t>(grid_.w, kChunkCols);
    const int64_t step = std::max<int64_t>(1, kTaskScores / size);
    parallel_for(threads, ceil_divide(count, step), [&](int64_t task) {
      for (int64_t i = task * step; i < std::min(count, (task + 1) * step); ++i) {
        const int64_t unit = i / leaves_, leaf = i % leaves_;
        add_leaf(unit / wide_, unit % wide_, leaf / chunks_, leaf % chunks_);
      }
    });
  }

  void add_leaf(int64_t a, int64_t b, int64_t s, int64_t c) {
    double lanes[kLanes] = {}, sums[kLanes];
    const int64_t left = grid_.first_col(b, c), width = grid_.end_col(b, c) - left, steps = width / kLanes;
    for (int64_t row = grid_.first_row(a, s); row < grid_.end_row(a, s); ++row) {
      add(row, left, kLanes, steps, kLanes, lanes);
      add(row, left + steps * kLanes, kLanes, 1, width - steps * kLanes, lanes);
    }
    partial(a, b, s, c) = add_pairs(lanes, sums, kLanes, kLaneLevels)[0];
  }

  void write(int64_t unit) {
    const double* const own = partials_.data() + unit * leaves_;
    double total = own[0];
    if (leaves_ > 1) {
      double lanes[kLanes] = {}, sums[kLanes];
      for (int64_t leaf = 0; leaf < leaves_; ++leaf) {
        double& lane = lanes[leaf % kLanes];
        lane = largest_ ? combine<true>(lane, own[leaf]) : combine<false>(lane, own[leaf]);
      }
      total = add_pairs(lanes, sums, kLanes, kLaneLevels)[0];
    }
    if (problem_.dtype == Dtype::kFloat64) {
      static_cast<double*>(problem_.out)[unit] = finish<double>(problem_.reduction, total, problem_.p);
    } else {
      static_cast<float*>(problem_.out)[unit] = finish<float>(problem_.reduction, total, problem_.p);
    }
  }

  const UnitScores& problem_;
  const UnitGrid grid_;
  const int64_t wide_, chunks_, leaves_;
  const AddFn add_;
  const bool largest_;
  const HalveFn halve_;
  int levels_ = 0;  // of pairs over the lanes of a narrow unit
  std::vector<double> partials_;  // [units, leaves]
};

}  // namespace

void group_scores(const UnitScores& problem, int threads, const std::string& force) { GroupSum(problem, force).run(threads); }

}  // namespace sparsekit
