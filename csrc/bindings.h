// SPDX-License-Identifier: Apache-2.0
// What the files that bind functions to Python share: checks of arguments, and the list of those files.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef SPARSEKIT_CUDA
#include "mask_cuda.h"
#endif

namespace sparsekit {

namespace py = pybind11;
using Pointers = std::vector<uintptr_t>;
using Sizes = std::vector<int64_t>;

void bind_masks(py::module_& module);
void bind_threshold(py::module_& module);
void bind_topk(py::module_& module);
void bind_groups(py::module_& module);
void bind_steps(py::module_& module);

inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

inline void require_sizes(const char* function, int64_t rows, int64_t cols) {
  require(rows >= 0 && cols >= 0, std::string(function) + ": rows, cols: expected sizes >= 0, got " + std::to_string(rows) +
                                      ", " + std::to_string(cols));
}

inline void require_length(const char* function, const char* argument, size_t got, size_t expected) {
  require(got == expected, std::string(function) + ": " + argument + ": expected " + std::to_string(expected) +
                               " entries, got " + std::to_string(got));
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
T named(const char* function, const char* argument, const std::map<std::string, T>& values, const std::string& name) {
  const auto found = values.find(name);
  std::string known;
  for (const auto& value : values) known += (known.empty() ? "" : ", ") + value.first;
  require(found != values.end(), std::string(function) + ": " + argument + ": expected one of " + known + ", got " + name);
  return found->second;
}

#ifdef SPARSEKIT_CUDA
inline void check(int code) {
  if (code != 0) throw std::runtime_error("CUDA error " + std::to_string(code) + ": " + cuda::error_text(code));
}
#endif

}  // namespace sparsekit
