// SPDX-License-Identifier: Apache-2.0
// Independent tasks on a number of threads. Tasks write to their own slot only, so results do not depend on the number.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace sparsekit {

// Calls task(i) for every i in [0, count). The first exception of any task is thrown again here.
template <class Task>
void parallel_for(int threads, int64_t count, const Task& task) {
  const int64_t wanted = std::min<int64_t>(threads, count);
  if (wanted <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex guard;
  const auto work = [&] {
    try {
      for (int64_t i = next++; i < count; i = next++) task(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(wanted));
  try {
    while (static_cast<int64_t>(others.size()) + 1 < wanted) others.emplace_back(work);
  } catch (const std::system_error&) {
    // The system gives no more threads: those that started, and this one, do the work.
  }
  work();
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace sparsekit
