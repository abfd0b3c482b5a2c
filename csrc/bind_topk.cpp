// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "select_options.h"
#include "topk_mask.h"
#ifdef SPARSEKIT_CUDA
#include "topk_mask_cuda.h"
#endif

namespace sparsekit {
namespace {

std::vector<ScoreTensor> score_tensors(const Pointers& scores, const Pointers& words, const Sizes& rows, const Sizes& cols) {
  require_length("topk_mask", "words", words.size(), scores.size());
  require_length("topk_mask", "rows", rows.size(), scores.size());
  require_length("topk_mask", "cols", cols.size(), scores.size());
  std::vector<ScoreTensor> tensors;
  for (size_t i = 0; i < scores.size(); ++i) {
    require_sizes("topk_mask", rows[i], cols[i]);
    tensors.push_back({pointer<void>(scores[i]), pointer<uint32_t>(words[i]), rows[i], cols[i]});
  }
  return tensors;
}

void require_kept(const char* function, int64_t kept, int64_t most) {
  require(0 <= kept && kept <= most,
          std::string(function) + ": kept: expected 0 to " + std::to_string(most) + ", got " + std::to_string(kept));
}

int64_t total_of(const std::vector<ScoreTensor>& tensors) {
  int64_t numel = 0;
  for (const ScoreTensor& tensor : tensors) numel += tensor.numel();
  return numel;
}

int64_t topk(const Pointers& scores, const Pointers& words, const Sizes& rows, const Sizes& cols, int64_t kept, int dtype,
             const std::string& key, const std::string& nan, int threads, const std::string& force, uintptr_t warm,
             const std::string& method) {
  const SelectOptions options = select_options("topk_mask", dtype, key, nan, threads, force, method);
  const std::vector<ScoreTensor> tensors = score_tensors(scores, words, rows, cols);
  require_kept("topk_mask", kept, total_of(tensors));
  return topk_mask(tensors, kept, options, pointer<WarmBracket>(warm));
}

int64_t topk_rows(uintptr_t scores, uintptr_t words, int64_t rows, int64_t cols, int64_t kept, int dtype,
                  const std::string& key, const std::string& nan, int threads, const std::string& force) {
  const SelectOptions options = select_options("topk_mask", dtype, key, nan, threads, force);
  require_sizes("topk_mask_rows", rows, cols);
  require_kept("topk_mask_rows", kept, cols);
  return topk_mask_rows({pointer<void>(scores), pointer<uint32_t>(words), rows, cols}, kept, options);
}

#ifdef SPARSEKIT_CUDA
int64_t cuda_workspace(const Sizes& rows, const Sizes& cols, bool per_tensor, int dtype) {
  const Pointers none(rows.size());
  return cuda::topk_workspace(score_tensors(none, none, rows, cols), per_tensor, dtype_of(dtype));
}

void cuda_topk(const Pointers& scores, const Pointers& words, const Sizes& rows, const Sizes& cols, const Sizes& kept,
               bool per_tensor, int dtype, const std::string& key, const std::string& nan, uintptr_t invalid, uintptr_t warm,
               uintptr_t workspace, int64_t workspace_bytes, int device, uintptr_t stream, const std::string& method,
               int64_t max_blocks) {
  const SelectOptions options = select_options("topk_mask", dtype, key, nan, 1, "", method);
  const std::vector<ScoreTensor> tensors = score_tensors(scores, words, rows, cols);
  require_length("topk_mask", "kept", kept.size(), per_tensor ? tensors.size() : 1);
  for (size_t i = 0; i < kept.size(); ++i) require_kept("topk_mask", kept[i], per_tensor ? tensors[i].numel() : total_of(tensors));
  const int64_t needed = cuda::topk_workspace(tensors, per_tensor, options.dtype);
  require(workspace_bytes >= needed, "topk_mask: workspace_bytes: expected at least " + std::to_string(needed) + ", got " +
                                         std::to_string(workspace_bytes));
  const cuda::TopkOutputs outputs{pointer<uint8_t>(invalid), pointer<WarmBracket>(warm), pointer<void>(workspace),
                                  workspace_bytes};
  check(cuda::topk_mask(tensors, kept, per_tensor, options, outputs, max_blocks, device, stream));
}

void cuda_topk_rows(uintptr_t scores, uintptr_t words, int64_t rows, int64_t cols, int64_t kept, int dtype,
                    const std::string& key, const std::string& nan, uintptr_t invalid, int device, uintptr_t stream) {
  require_sizes("topk_mask_rows", rows, cols);
  require_kept("topk_mask_rows", kept, cols);
  // A block counts the keys of a row in 32 bits.
  require(cols < int64_t{1} << 32, "topk_mask_rows: cols: expected less than 2^32, got " + std::to_string(cols));
  check(cuda::topk_mask_rows({pointer<void>(scores), pointer<uint32_t>(words), rows, cols}, kept,
                             select_options("topk_mask", dtype, key, nan, 1, ""), pointer<uint8_t>(invalid), device, stream));
}

void bind_cuda(py::module_& module) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.def("cuda_topk_workspace", &cuda_workspace, "rows"_a, "cols"_a, "per_tensor"_a, "dtype"_a, released);
  module.def("cuda_topk_mask", &cuda_topk, "scores"_a, "words"_a, "rows"_a, "cols"_a, "kept"_a, "per_tensor"_a, "dtype"_a,
             "key"_a, "nan"_a, "invalid"_a, "warm"_a, "workspace"_a, "workspace_bytes"_a, "device"_a, "stream"_a,
             "method"_a = "bracket", "max_blocks"_a = 0, released);
  module.def("cuda_topk_mask_rows", &cuda_topk_rows, "scores"_a, "words"_a, "rows"_a, "cols"_a, "kept"_a, "dtype"_a, "key"_a,
             "nan"_a, "invalid"_a, "device"_a, "stream"_a, released);
}
#endif

}  // namespace

void bind_topk(py::module_& module) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.def("topk_mask", &topk, "scores"_a, "words"_a, "rows"_a, "cols"_a, "kept"_a, "dtype"_a, "key"_a = "magnitude",
             "nan"_a = "error", "threads"_a = 1, "force"_a = "", "warm"_a = 0, "method"_a = "bracket", released);
  module.def("topk_mask_rows", &topk_rows, "scores"_a, "words"_a, "rows"_a, "cols"_a, "kept"_a, "dtype"_a,
             "key"_a = "magnitude", "nan"_a = "error", "threads"_a = 1, "force"_a = "", released);
#ifdef SPARSEKIT_CUDA
  bind_cuda(module);
#endif
}

}  // namespace sparsekit
