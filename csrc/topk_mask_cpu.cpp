// SPDX-License-Identifier: Apache-2.0
#include "topk_mask.h"

#include <algorithm>
#include <atomic>

#include "parallel.h"
#include "selection.h"

namespace sparsekit {
namespace {

constexpr int64_t kTasksPerThread = 8;

}  // namespace

int64_t topk_mask(const std::vector<ScoreTensor>& tensors, int64_t kept, const SelectOptions& options, WarmBracket* warm) {
  return for_width(options.dtype, [&](auto bits) {
    return Selection<decltype(bits)>(tensors, kept, options, options.threads).run(warm);
  });
}

int64_t topk_mask_rows(const ScoreTensor& tensor, int64_t kept, const SelectOptions& options) {
  const int64_t per_row = words_per_row(tensor.cols);
  // Rows of one task: worth a thread, yet enough tasks to share the rows evenly.
  const int64_t batch = std::max<int64_t>(1, kPerThread / kTasksPerThread / std::max<int64_t>(1, tensor.cols));
  std::atomic<int64_t> nans{0};
  parallel_for(options.threads, (tensor.rows + batch - 1) / batch, [&](int64_t part) {
    for (int64_t row = part * batch; row < std::min(tensor.rows, (part + 1) * batch); ++row) {
      const char* const scores = static_cast<const char*>(tensor.scores) + row * tensor.cols * itemsize(options.dtype);
      const std::vector<ScoreTensor> one = {{scores, tensor.words + row * per_row, 1, tensor.cols}};
      nans += for_width(options.dtype, [&](auto bits) { return Selection<decltype(bits)>(one, kept, options, 1).run(nullptr); });
    }
  });
  return nans;
}

}  // namespace sparsekit
