// SPDX-License-Identifier: Apache-2.0
// The current CUDA device for the time of a launch; for .cu files only.
#pragma once
#include <cuda_runtime.h>

namespace sparsekit::cuda {

// Launches happen on the caller's device and leave the current device as it was.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    code_ = cudaGetDevice(&previous_);
    if (code_ == cudaSuccess && previous_ != device) code_ = cudaSetDevice(device);
    changed_ = code_ == cudaSuccess && previous_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  cudaError_t code() const { return code_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t code_;
};

}  // namespace sparsekit::cuda
