// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "bindings.h"
#include "structured.h"
#include "tile_patterns.h"
#ifdef SPARSEKIT_CUDA
#include "structured_cuda.h"
#endif

namespace sparsekit {
namespace {

const std::map<std::string, KeyKind> kKeys = {{"value", KeyKind::kValue}, {"magnitude", KeyKind::kMagnitude}};
const std::map<std::string, NanPolicy> kPolicies = {
    {"error", NanPolicy::kError}, {"drop", NanPolicy::kDrop}, {"keep", NanPolicy::kKeep}};

UnitGrid grid_of(const char* function, int64_t rows, int64_t cols, int64_t h, int64_t w) {
  const bool positive = rows >= 1 && cols >= 1 && h >= 1 && w >= 1;
  require(positive, std::string(function) + ": rows, cols, h, w: expected sizes >= 1, got " + std::to_string(rows) + ", " +
                        std::to_string(cols) + ", " + std::to_string(h) + ", " + std::to_string(w));
  // A unit larger than the matrix is the whole of it.
  return {rows, cols, std::min(h, rows), std::min(w, cols)};
}

UnitScores unit_scores(uintptr_t scores, uintptr_t out, const UnitGrid& grid, int dtype, double p, const std::string& key) {
  require(p > 0, "group_scores: p: expected a number > 0 or inf, got " + std::to_string(p));
  const bool value = named("group_scores", "key", kKeys, key) == KeyKind::kValue;
  const Reduction norm = p == 1           ? Reduction::kOne
                         : p == 2         ? Reduction::kTwo
                         : std::isinf(p) ? Reduction::kMax
                                          : Reduction::kPower;
  return {grid, pointer<void>(scores), pointer<void>(out), dtype_of(dtype), value ? Reduction::kSum : norm, p};
}

GroupedScores grouped(const char* function, uintptr_t scores, uintptr_t words, int64_t rows, int64_t channels,
                      int64_t spatial, int dtype, const std::string& key, const std::string& nan) {
  const bool fits = rows >= 0 && channels >= 0 && spatial >= 1;
  require(fits, std::string(function) + ": rows, channels, spatial: expected sizes >= 0, >= 0, >= 1, got " +
                    std::to_string(rows) + ", " + std::to_string(channels) + ", " + std::to_string(spatial));
  return {pointer<void>(scores),
          pointer<uint32_t>(words),
          rows,
          channels,
          spatial,
          dtype_of(dtype),
          named(function, "key", kKeys, key),
          named(function, "nan", kPolicies, nan)};
}

GroupedScores groups_of_m(const GroupedScores& problem, int64_t n, int64_t m) {
  // Ranks within a group have 16 bits where scores have.
  require(1 <= n && n <= m && m <= 32767, "nm_mask: n, m: expected 1 <= n <= m <= 32767, got " + std::to_string(n) + ", " +
                                              std::to_string(m));
  require(problem.channels % m == 0, "nm_mask: channels: expected a multiple of " + std::to_string(m) + ", got " +
                                         std::to_string(problem.channels));
  return problem;
}

GroupedScores tiles(const GroupedScores& problem) {
  require(problem.rows % kTile == 0 && problem.channels % kTile == 0,
          "transposable_nm_mask: rows, channels: expected multiples of 4, got " + std::to_string(problem.rows) + ", " +
              std::to_string(problem.channels));
  return problem;
}

#ifdef SPARSEKIT_CUDA
void bind_cuda(py::module_& module) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.def("group_scores_scratch", [](int64_t rows, int64_t cols, int64_t h, int64_t w) {
    return cuda::group_scores_scratch(grid_of("group_scores_scratch", rows, cols, h, w));
  }, "rows"_a, "cols"_a, "h"_a, "w"_a, released);
  module.def("cuda_group_scores", [](uintptr_t scores, uintptr_t out, uintptr_t scratch, int64_t rows, int64_t cols, int64_t h,
                                     int64_t w, int dtype, double p, const std::string& key, int device, uintptr_t stream) {
    const UnitScores problem = unit_scores(scores, out, grid_of("cuda_group_scores", rows, cols, h, w), dtype, p, key);
    check(cuda::group_scores(problem, pointer<double>(scratch), device, stream));
  }, "scores"_a, "out"_a, "scratch"_a, "rows"_a, "cols"_a, "h"_a, "w"_a, "dtype"_a, "p"_a, "key"_a, "device"_a, "stream"_a,
             released);
  module.def("cuda_expand_units", [](uintptr_t units, uintptr_t words, int64_t rows, int64_t cols, int64_t h, int64_t w,
                                     bool listed, int device, uintptr_t stream) {
    const UnitBits bits = {grid_of("cuda_expand_units", rows, cols, h, w), pointer<uint32_t>(units), listed};
    check(cuda::expand_units(bits, pointer<uint32_t>(words), device, stream));
  }, "units"_a, "words"_a, "rows"_a, "cols"_a, "h"_a, "w"_a, "listed"_a, "device"_a, "stream"_a, released);
  module.def("cuda_nm_mask", [](uintptr_t scores, uintptr_t words, int64_t rows, int64_t channels, int64_t spatial, int64_t n,
                                int64_t m, int dtype, const std::string& key, const std::string& nan, uintptr_t invalid,
                                int device, uintptr_t stream) {
    const auto problem = groups_of_m(grouped("cuda_nm_mask", scores, words, rows, channels, spatial, dtype, key, nan), n, m);
    if (rows * channels == 0) return;
    check(cuda::nm_mask(problem, n, m, pointer<uint8_t>(invalid), device, stream));
  }, "scores"_a, "words"_a, "rows"_a, "channels"_a, "spatial"_a, "n"_a, "m"_a, "dtype"_a, "key"_a, "nan"_a, "invalid"_a,
             "device"_a, "stream"_a, released);
  constexpr const char* kTransposable = "cuda_transposable_nm_mask";
  module.def(kTransposable, [](uintptr_t scores, uintptr_t words, uintptr_t scratch, int64_t rows, int64_t channels,
                               int64_t spatial, int dtype, const std::string& key, const std::string& nan, uintptr_t invalid,
                               int device, uintptr_t stream) {
    const auto problem = tiles(grouped(kTransposable, scores, words, rows, channels, spatial, dtype, key, nan));
    if (rows * channels == 0) return;
    check(cuda::transposable_nm_mask(problem, pointer<uint16_t>(scratch), pointer<uint8_t>(invalid), device, stream));
  }, "scores"_a, "words"_a, "scratch"_a, "rows"_a, "channels"_a, "spatial"_a, "dtype"_a, "key"_a, "nan"_a, "invalid"_a,
             "device"_a, "stream"_a, released);
}
#endif

}  // namespace

void bind_groups(py::module_& module) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.def("group_scores", [](uintptr_t scores, uintptr_t out, int64_t rows, int64_t cols, int64_t h, int64_t w, int dtype,
                                double p, const std::string& key, int threads, const std::string& force) {
    group_scores(unit_scores(scores, out, grid_of("group_scores", rows, cols, h, w), dtype, p, key), threads, force);
  }, "scores"_a, "out"_a, "rows"_a, "cols"_a, "h"_a, "w"_a, "dtype"_a, "p"_a = 2.0, "key"_a = "magnitude", "threads"_a = 1,
             "force"_a = "", released);
  module.def("expand_units", [](uintptr_t units, uintptr_t words, int64_t rows, int64_t cols, int64_t h, int64_t w, bool listed,
                                int threads) {
    const UnitBits bits = {grid_of("expand_units", rows, cols, h, w), pointer<uint32_t>(units), listed};
    expand_units(bits, pointer<uint32_t>(words), threads);
  }, "units"_a, "words"_a, "rows"_a, "cols"_a, "h"_a, "w"_a, "listed"_a, "threads"_a = 1, released);
  module.def("nm_mask", [](uintptr_t scores, uintptr_t words, int64_t rows, int64_t channels, int64_t spatial, int64_t n,
                           int64_t m, int dtype, const std::string& key, const std::string& nan, int threads,
                           const std::string& force) {
    const auto problem = groups_of_m(grouped("nm_mask", scores, words, rows, channels, spatial, dtype, key, nan), n, m);
    return nm_mask(problem, n, m, threads, force);
  }, "scores"_a, "words"_a, "rows"_a, "channels"_a, "spatial"_a, "n"_a, "m"_a, "dtype"_a, "key"_a = "magnitude",
             "nan"_a = "error", "threads"_a = 1, "force"_a = "", released);
  constexpr const char* kTransposable = "transposable_nm_mask";
  module.def(kTransposable, [](uintptr_t scores, uintptr_t words, int64_t rows, int64_t channels, int64_t spatial, int dtype,
                               const std::string& key, const std::string& nan, int threads, const std::string& force) {
    const auto problem = tiles(grouped(kTransposable, scores, words, rows, channels, spatial, dtype, key, nan));
    return transposable_nm_mask(problem, threads, force);
  }, "scores"_a, "words"_a, "rows"_a, "channels"_a, "spatial"_a, "dtype"_a, "key"_a = "magnitude", "nan"_a = "error",
             "threads"_a = 1, "force"_a = "", released);
#ifdef SPARSEKIT_CUDA
  bind_cuda(module);
#endif
}

}  // namespace sparsekit
