// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "bindings.h"
#include "select_options.h"
#include "threshold.h"

namespace sparsekit {
namespace {

// The lowest and the highest key are no score's that is ever kept, and have no neighbours on both sides.
void require_key(const char* function, const char* argument, int64_t key, Dtype dtype) {
  const int64_t last = (std::numeric_limits<int64_t>::max() >> (64 - 8 * itemsize(dtype))) - 1;
  require(-last - 1 <= key && key <= last, std::string(function) + ": " + argument + ": expected a key from " +
                                               std::to_string(-last - 1) + " to " + std::to_string(last) + ", got " +
                                               std::to_string(key));
}

void histogram(const Pointers& scores, const Sizes& sizes, uintptr_t counts, int64_t first, int shift, int64_t bins, int dtype,
               const std::string& key, const std::string& nan, int threads, const std::string& force) {
  const char* const function = "key_histogram";
  const SelectOptions options = select_options(function, dtype, key, nan, threads, force);
  require_length(function, "sizes", sizes.size(), scores.size());
  require_key(function, "first", first, options.dtype);
  require(0 <= shift && shift < 8 * itemsize(options.dtype),
          "key_histogram: shift: expected 0 to the bits of a score - 1, got " + std::to_string(shift));
  require(1 <= bins && bins <= kBins,
          "key_histogram: bins: expected 1 to " + std::to_string(kBins) + ", got " + std::to_string(bins));
  std::vector<ScoreTensor> tensors;
  for (size_t i = 0; i < scores.size(); ++i) {
    require_sizes(function, 1, sizes[i]);
    tensors.push_back({pointer<void>(scores[i]), nullptr, 1, sizes[i]});
  }
  key_histogram(tensors, {first, shift, bins}, options, pointer<int64_t>(counts));
}

void mask(const Pointers& scores, const Pointers& words, const Sizes& rows, const Sizes& cols, int64_t threshold,
          const Sizes& ties, int dtype, const std::string& key, const std::string& nan, int threads, const std::string& force) {
  const char* const function = "mask_at_threshold";
  const SelectOptions options = select_options(function, dtype, key, nan, threads, force);
  require_length(function, "words", words.size(), scores.size());
  require_length(function, "rows", rows.size(), scores.size());
  require_length(function, "cols", cols.size(), scores.size());
  require_length(function, "ties", ties.size(), scores.size());
  require_key(function, "threshold", threshold, options.dtype);
  std::vector<ScoreTensor> tensors;
  for (size_t i = 0; i < scores.size(); ++i) {
    require_sizes(function, rows[i], cols[i]);
    require(ties[i] >= 0, "mask_at_threshold: ties: expected numbers >= 0, got " + std::to_string(ties[i]));
    tensors.push_back({pointer<void>(scores[i]), pointer<uint32_t>(words[i]), rows[i], cols[i]});
  }
  mask_at_threshold(tensors, threshold, ties, options);
}

}  // namespace

void bind_threshold(py::module_& module) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.def("key_histogram", &histogram, "scores"_a, "sizes"_a, "counts"_a, "first"_a, "shift"_a, "bins"_a, "dtype"_a,
             "key"_a = "magnitude", "nan"_a = "error", "threads"_a = 1, "force"_a = "", released);
  module.def("mask_at_threshold", &mask, "scores"_a, "words"_a, "rows"_a, "cols"_a, "threshold"_a, "ties"_a, "dtype"_a,
             "key"_a = "magnitude", "nan"_a = "error", "threads"_a = 1, "force"_a = "", released);
}

}  // namespace sparsekit
