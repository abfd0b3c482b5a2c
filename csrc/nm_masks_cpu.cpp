// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <vector>

#include "group_lanes.h"
#include "parallel.h"
#include "score_values.h"
#include "structured.h"
#include "tile_patterns.h"

namespace sparsekit {
namespace {

// Splits `rows` into tasks of about as many scores, and adds up what the tasks return.
template <class Rows>
int64_t sum_over_rows(int64_t rows, int64_t scores_per_row, int threads, const Rows& visit) {
  constexpr int64_t kTaskScores = 1 << 15;
  const int64_t step = std::max<int64_t>(1, kTaskScores / std::max<int64_t>(1, scores_per_row));
  const int64_t tasks = (rows + step - 1) / step;
  std::vector<int64_t> counts(static_cast<size_t>(tasks));
  parallel_for(threads, tasks, [&](int64_t task) {
    counts[static_cast<size_t>(task)] = visit(task * step, std::min(rows, (task + 1) * step));
  });
  int64_t total = 0;
  for (const int64_t count : counts) total += count;
  return total;
}

void pack_row(const uint8_t* kept, int64_t cols, uint32_t* words) {
  int64_t col = 0;
  for (; col + kWordBits <= cols; col += kWordBits) *words++ = pack32(kept + col);
  if (col == cols) return;
  uint8_t padded[kWordBits] = {};
  std::copy(kept + col, kept + cols, padded);
  *words = pack32(padded);
}

// Columns of whole groups that are worked on together: about kBlockCols, which stay in the L1 cache.
int64_t block_cols(int64_t group_cols, int64_t cols) {
  constexpr int64_t kBlockCols = 1 << 10;
  return std::min(cols, std::max<int64_t>(1, kBlockCols / group_cols) * group_cols);
}

// Rows [begin, end).
template <class U>
int64_t best_of_groups(const GroupedScores& problem, int64_t n, int64_t m, const GroupLanes& lanes, int64_t begin,
                       int64_t end) {
  using Key = SignedOf<U>;
  const int64_t cols = problem.cols(), block = block_cols(m * problem.spatial, cols);
  const KeySpec<U> spec(problem.dtype, problem.key, problem.nan);
  // kHighest is no key: nothing is dropped then.
  const Key dropped = problem.nan == NanPolicy::kKeep ? KeySpec<U>::kHighest : spec.nan_key;
  std::vector<Key> place(static_cast<size_t>(block)), scratch(static_cast<size_t>(3 * block));
  for (int64_t col = 0; col < block; ++col) place[static_cast<size_t>(col)] = static_cast<Key>(col / problem.spatial % m);
  std::vector<uint8_t> kept(static_cast<size_t>(cols));
  int64_t nans = 0;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t col = 0; col < cols; col += block) {
      const U* const scores = static_cast<const U*>(problem.scores) + row * cols + col;
      Key* const keys = scratch.data();
      const GroupStretch<U> stretch = {scores, std::min(block, cols - col), place.data(), n, m, problem.spatial,
                                       keys,   keys + block, keys + 2 * block, kept.data() + col};
      nans += keep_of_width<U>(lanes)(stretch, spec, dropped);
    }
    pack_row(kept.data(), cols, problem.words + row * words_per_row(cols));
  }
  return nans;
}

template <class T>
class BestOfTiles {
 public:
  BestOfTiles(const GroupedScores& problem, const GroupLanes& lanes)
      : problem_(problem), lanes_(lanes), cols_(problem.cols()), block_(block_cols(kTile * problem.spatial, cols_)) {}

  // Rows of tiles [begin, end).
  int64_t rows(int64_t begin, int64_t end) const {
    std::vector<uint8_t> kept(static_cast<size_t>(kTile * cols_));
    std::vector<double> values(static_cast<size_t>(kTile * block_));
    int64_t nans = 0;
    for (int64_t top = begin * kTile; top < end * kTile; top += kTile) {
      for (int64_t col = 0; col < cols_; col += block_) nans += decide(top, col, values.data(), kept.data() + col);
      for (int row = 0; row < kTile; ++row) {
        pack_row(kept.data() + row * cols_, cols_, problem_.words + (top + row) * words_per_row(cols_));
      }
    }
    return nans;
  }

 private:
  // The tiles of a block of columns. kept: the block's bytes, rows are cols_ apart.
  int64_t decide(int64_t top, int64_t col, double* values, uint8_t* kept) const {
    const T* const scores = static_cast<const T*>(problem_.scores) + top * cols_ + col;
    const int64_t count = std::min(block_, cols_ - col), spatial = problem_.spatial;
    const bool magnitude = problem_.key == KeyKind::kMagnitude;
    const double nan_value = tile_nan_value(problem_.nan);
    int64_t nans = 0;
    for (int row = 0; row < kTile; ++row) {
      nans += lanes_.tile_values[static_cast<int>(problem_.dtype)](scores + row * cols_, count, magnitude, nan_value,
                                                                  values + row * block_);
    }
    int64_t firsts[kTiles];  // first columns of tiles
    int waiting = 0;
    for (int64_t left = 0; left < count; left += kTile * spatial) {
      for (int64_t position = 0; position < spatial; ++position) {
        firsts[waiting++] = left + position;
        if (waiting == kTiles) waiting = best(values, firsts, waiting, kept);
      }
    }
    best(values, firsts, waiting, kept);
    if (nans > 0 && problem_.nan != NanPolicy::kKeep) drop_nans(scores, count, kept);
    return nans;
  }

  // Decides tiles that wait and returns how many still do: none.
  int best(const double* values, const int64_t* firsts, int tiles, uint8_t* kept) const {
    double gathered[kTile * kTile * kTiles] = {};
    uint32_t masks[kTiles];
    for (int e = 0; e < kTile * kTile; ++e) {
      const double* const own = values + e / kTile * block_ + e % kTile * problem_.spatial;
      for (int l = 0; l < tiles; ++l) gathered[e * kTiles + l] = own[firsts[l]];
    }
    lanes_.best_masks(gathered, masks);
    for (int e = 0; e < kTile * kTile; ++e) {
      uint8_t* const own = kept + e / kTile * cols_ + e % kTile * problem_.spatial;
      for (int l = 0; l < tiles; ++l) own[firsts[l]] = test_bit(masks[l], e);
    }
    return 0;
  }

  void drop_nans(const T* scores, int64_t count, uint8_t* kept) const {
    for (int row = 0; row < kTile; ++row) {
      for (int64_t i = row * cols_; i < row * cols_ + count; ++i) {
        if (as_double(scores[i]) != as_double(scores[i])) kept[i] = 0;
      }
    }
  }

  const GroupedScores& problem_;
  const GroupLanes& lanes_;
  const int64_t cols_, block_;
};

template <class U>
int64_t nm_mask_of(const GroupedScores& problem, int64_t n, int64_t m, int threads, const GroupLanes& lanes) {
  return sum_over_rows(problem.rows, problem.cols(), threads, [&](int64_t begin, int64_t end) {
    return best_of_groups<U>(problem, n, m, lanes, begin, end);
  });
}

}  // namespace

int64_t nm_mask(const GroupedScores& problem, int64_t n, int64_t m, int threads, const std::string& force) {
  const GroupLanes& lanes = choose_group_lanes(force);
  switch (itemsize(problem.dtype)) {
    case 2: return nm_mask_of<uint16_t>(problem, n, m, threads, lanes);
    case 4: return nm_mask_of<uint32_t>(problem, n, m, threads, lanes);
    default: return nm_mask_of<uint64_t>(problem, n, m, threads, lanes);
  }
}

int64_t transposable_nm_mask(const GroupedScores& problem, int threads, const std::string& force) {
  const GroupLanes& lanes = choose_group_lanes(force);
  return with_score_type(problem.dtype, [&](auto score) {
    const BestOfTiles<decltype(score)> best(problem, lanes);
    return sum_over_rows(problem.rows / kTile, kTile * problem.cols(), threads,
                         [&](int64_t begin, int64_t end) { return best.rows(begin, end); });
  });
}

}  // namespace sparsekit
