// SPDX-License-Identifier: Apache-2.0
// What the emulator tells ThreadSanitizer, so that it finds accesses which nothing on a device would order.
//
// With EMULATOR_RACES, every thread of a kernel is a thread to the sanitizer. Changing fibers orders nothing; release() on
// a tag orders what this thread did before whatever another thread does after acquire() on it. Without, all this is empty.
#pragma once

#ifdef EMULATOR_RACES
#include <sanitizer/tsan_interface.h>

extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);

namespace emulator::ordering {

constexpr bool kWatched = true;

inline void* new_thread() { return __tsan_create_fiber(0); }
inline void* this_thread() { return __tsan_get_current_fiber(); }
inline void change_to(void* thread) { __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync); }
inline void release(void* tag) { __tsan_release(tag); }
inline void acquire(void* tag) { __tsan_acquire(tag); }

// While it lives, the emulator's own use of memory is no access of the thread.
struct Unwatched {
  Unwatched() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unwatched() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

}  // namespace emulator::ordering
#else
namespace emulator::ordering {

constexpr bool kWatched = false;

inline void* new_thread() { return nullptr; }
inline void* this_thread() { return nullptr; }
inline void change_to(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}

struct Unwatched {
  Unwatched() {}
};

}  // namespace emulator::ordering
#endif
