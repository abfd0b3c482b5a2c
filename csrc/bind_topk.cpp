// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "select_options.h"
#include "topk_mask.h"

namespace sparsekit {
namespace {

int64_t topk(const Pointers& scores, const Pointers& words, const Sizes& rows, const Sizes& cols, int64_t kept, int dtype,
             const std::string& key, const std::string& nan, int threads, const std::string& force) {
  const SelectOptions options = select_options("topk_mask", dtype, key, nan, threads, force);
  require_length("topk_mask", "words", words.size(), scores.size());
  require_length("topk_mask", "rows", rows.size(), scores.size());
  require_length("topk_mask", "cols", cols.size(), scores.size());
  std::vector<ScoreTensor> tensors;
  int64_t numel = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    require_sizes("topk_mask", rows[i], cols[i]);
    tensors.push_back({pointer<void>(scores[i]), pointer<uint32_t>(words[i]), rows[i], cols[i]});
    numel += rows[i] * cols[i];
  }
  require(0 <= kept && kept <= numel,
          "topk_mask: kept: expected 0 to " + std::to_string(numel) + ", got " + std::to_string(kept));
  return topk_mask(tensors, kept, options);
}

int64_t topk_rows(uintptr_t scores, uintptr_t words, int64_t rows, int64_t cols, int64_t kept, int dtype,
                  const std::string& key, const std::string& nan, int threads, const std::string& force) {
  const SelectOptions options = select_options("topk_mask", dtype, key, nan, threads, force);
  require_sizes("topk_mask_rows", rows, cols);
  require(0 <= kept && kept <= cols,
          "topk_mask_rows: kept: expected 0 to " + std::to_string(cols) + ", got " + std::to_string(kept));
  return topk_mask_rows({pointer<void>(scores), pointer<uint32_t>(words), rows, cols}, kept, options);
}

}  // namespace

void bind_topk(py::module_& module) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.def("topk_mask", &topk, "scores"_a, "words"_a, "rows"_a, "cols"_a, "kept"_a, "dtype"_a, "key"_a = "magnitude",
             "nan"_a = "error", "threads"_a = 1, "force"_a = "", released);
  module.def("topk_mask_rows", &topk_rows, "scores"_a, "words"_a, "rows"_a, "cols"_a, "kept"_a, "dtype"_a,
             "key"_a = "magnitude", "nan"_a = "error", "threads"_a = 1, "force"_a = "", released);
}

}  // namespace sparsekit
