// SPDX-License-Identifier: Apache-2.0
// The options of a selection from what Python passes.
#pragma once
#include <map>
#include <string>

#include "bindings.h"
#include "topk_mask.h"

namespace sparsekit {

inline SelectOptions select_options(const char* function, int dtype, const std::string& key, const std::string& nan,
                                    int threads, const std::string& force, const std::string& method = "bracket") {
  static const std::map<std::string, KeyKind> keys = {{"value", KeyKind::kValue}, {"magnitude", KeyKind::kMagnitude}};
  static const std::map<std::string, NanPolicy> policies = {
      {"error", NanPolicy::kError}, {"drop", NanPolicy::kDrop}, {"keep", NanPolicy::kKeep}};
  static const std::map<std::string, Method> methods = {{"bracket", Method::kBracket}, {"radix", Method::kRadix}};
  return {dtype_of(dtype), named(function, "key", keys, key),      named(function, "nan", policies, nan), threads,
          force,           named(function, "method", methods, method)};
}

}  // namespace sparsekit
