// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "steps.h"

namespace sparsekit {
namespace {

const std::map<std::string, ScoreStep> kKeys = {
    {"magnitude", ScoreStep::kMagnitude}, {"value", ScoreStep::kValue}, {"released", ScoreStep::kReleased}};

struct Types {
  Dtype operands, grads;
};

Types types_of(const char* function, int dtype, int grad_dtype) {
  const Types types = {dtype_of(dtype), dtype_of(grad_dtype)};
  const bool wide = types.operands == Dtype::kFloat32 || types.operands == Dtype::kFloat64;
  const bool narrow_grads = types.operands == Dtype::kFloat32 && itemsize(types.grads) == 2;
  require(wide && (types.grads == types.operands || narrow_grads),
          std::string(function) + ": dtype, grad_dtype: expected float32 or float64 and the same, or float32 and 16 bits, got " +
              std::to_string(dtype) + ", " + std::to_string(grad_dtype));
  return types;
}

// operands: kOperands addresses for each tensor, 0 for one that the step leaves out.
std::vector<StepTensor> step_tensors(const char* function, const Pointers& operands, const Pointers& grads,
                                     const Pointers& words, const Sizes& rows, const Sizes& cols, const Sizes& spatial) {
  const size_t count = grads.size();
  require_length(function, "operands", operands.size(), kOperands * count);
  require_length(function, "words", words.size(), count);
  require_length(function, "rows", rows.size(), count);
  require_length(function, "cols", cols.size(), count);
  require_length(function, "spatial", spatial.size(), count);
  std::vector<StepTensor> tensors(count);
  for (size_t i = 0; i < count; ++i) {
    require_sizes(function, rows[i], cols[i]);
    require(spatial[i] >= 1 && cols[i] % spatial[i] == 0, std::string(function) + ": spatial: expected a divisor of cols " +
                                                              std::to_string(cols[i]) + ", got " + std::to_string(spatial[i]));
    for (size_t r = 0; r < kOperands; ++r) tensors[i].operands[r] = pointer<void>(operands[kOperands * i + r]);
    tensors[i].grad = pointer<void>(grads[i]);
    tensors[i].words = pointer<uint32_t>(words[i]);
    tensors[i].rows = rows[i];
    tensors[i].cols = cols[i];
    tensors[i].spatial = spatial[i];
  }
  return tensors;
}

Rates rates_of(const char* function, const std::vector<double>& rates, size_t count, uintptr_t there) {
  if (there == 0) require_length(function, "rates", rates.size(), count);
  Rates result{pointer<double>(there), {}};
  for (size_t i = 0; i < rates.size() && i < 3; ++i) result.host[i] = rates[i];
  return result;
}

// Defines the CPU function `name` and the device function "cuda_" + name, of the tensors, options, and types.
// make(rates, device_rates, numbers, key, flags) -> options.
template <class Make, class Cpu, class Cuda>
void define(py::module_& module, const char* name, const Make& make, const Cpu& cpu, const Cuda& on_device) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.def(name, [=](const Pointers& operands, const Pointers& grads, const Pointers& words, const Sizes& rows,
                       const Sizes& cols, const Sizes& spatial, int dtype, int grad_dtype, const std::vector<double>& rates,
                       const std::vector<double>& numbers, const std::string& key, int threads, const std::string& force) {
    const Types types = types_of(name, dtype, grad_dtype);
    const auto options = make(rates, 0, numbers, key);
    cpu(step_tensors(name, operands, grads, words, rows, cols, spatial), options, types, threads, force);
  }, "operands"_a, "grads"_a, "words"_a, "rows"_a, "cols"_a, "spatial"_a, "dtype"_a, "grad_dtype"_a,
             "rates"_a = std::vector<double>{}, "numbers"_a = std::vector<double>{}, "key"_a = "", "threads"_a = 1,
             "force"_a = "", released);
#ifdef SPARSEKIT_CUDA
  module.def((std::string("cuda_") + name).c_str(),
             [=](const Pointers& operands, const Pointers& grads, const Pointers& words, const Sizes& rows, const Sizes& cols,
                 const Sizes& spatial, int dtype, int grad_dtype, const std::vector<double>& rates,
                 const std::vector<double>& numbers, const std::string& key, uintptr_t device_rates, int device,
                 uintptr_t stream) {
    const Types types = types_of(name, dtype, grad_dtype);
    const auto options = make(rates, device_rates, numbers, key);
    check(on_device(step_tensors(name, operands, grads, words, rows, cols, spatial), options, types, device, stream));
  }, "operands"_a, "grads"_a, "words"_a, "rows"_a, "cols"_a, "spatial"_a, "dtype"_a, "grad_dtype"_a, "rates"_a, "numbers"_a,
             "key"_a, "device_rates"_a, "device"_a, "stream"_a, released);
#endif
}

BilevelOptions bilevel_options(const std::vector<double>& rates, uintptr_t there, const std::vector<double>& n,
                               const std::string& key) {
  require_length("bilevel_update", "numbers", n.size(), 4);
  return {rates_of("bilevel_update", rates, 1, there), n[0], n[1], n[2], named("bilevel_update", "key", kKeys, key), n[3] != 0};
}

SgdOptions sgd_options(const std::vector<double>& rates, uintptr_t there, const std::vector<double>& n, const std::string&) {
  require_length("masked_sgd", "numbers", n.size(), 5);
  return {rates_of("masked_sgd", rates, 1, there), n[0], n[1], n[2], n[3] != 0, n[4] != 0};
}

AdamwOptions adamw_options(const std::vector<double>& rates, uintptr_t there, const std::vector<double>& n,
                           const std::string&) {
  require_length("masked_adamw", "numbers", n.size(), 3);
  return {rates_of("masked_adamw", rates, 3, there), n[0], n[1], n[2]};
}

struct NoOptions {};

NoOptions no_options(const std::vector<double>&, uintptr_t, const std::vector<double>&, const std::string&) { return {}; }

}  // namespace

#ifdef SPARSEKIT_CUDA
#define SPARSEKIT_ON_DEVICE(call)                                                                                      \
  [](const std::vector<StepTensor>& tensors, [[maybe_unused]] const auto& options, Types types, int device,            \
     uintptr_t stream) { return call; }
#else
#define SPARSEKIT_ON_DEVICE(call) 0
#endif
#define SPARSEKIT_ON_CPU(call)                                                                                               \
  [](const std::vector<StepTensor>& tensors, [[maybe_unused]] const auto& options, Types types, int threads,                 \
     const std::string& force) { call; }

void bind_steps(py::module_& module) {
  define(module, "bilinear_grads", no_options,
         SPARSEKIT_ON_CPU(bilinear_grads(tensors, types.operands, types.grads, threads, force)),
         SPARSEKIT_ON_DEVICE(cuda::bilinear_grads(tensors, types.operands, types.grads, device, stream)));
  define(module, "bilevel_update", bilevel_options,
         SPARSEKIT_ON_CPU(bilevel_update(tensors, options, types.operands, types.grads, threads, force)),
         SPARSEKIT_ON_DEVICE(cuda::bilevel_update(tensors, options, types.operands, types.grads, device, stream)));
  define(module, "masked_sgd", sgd_options,
         SPARSEKIT_ON_CPU(masked_sgd(tensors, options, types.operands, types.grads, threads, force)),
         SPARSEKIT_ON_DEVICE(cuda::masked_sgd(tensors, options, types.operands, types.grads, device, stream)));
  define(module, "masked_adamw", adamw_options,
         SPARSEKIT_ON_CPU(masked_adamw(tensors, options, types.operands, types.grads, threads, force)),
         SPARSEKIT_ON_DEVICE(cuda::masked_adamw(tensors, options, types.operands, types.grads, device, stream)));
}

}  // namespace sparsekit
