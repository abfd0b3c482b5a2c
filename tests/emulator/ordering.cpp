// SPDX-License-Identifier: Apache-2.0
// A volatile access is as good as a relaxed atomic one on a device: such accesses may meet each other, but no plain one.
#include <cstdint>

// The compiler calls these before each volatile access of the watched code.
#define VOLATILE_ACCESS(bytes, Type)                                                                           \
  extern "C" void __tsan_volatile_read##bytes(Type* at) { static_cast<void>(__atomic_load_n(at, __ATOMIC_RELAXED)); } \
  extern "C" void __tsan_volatile_write##bytes(Type* at) { __atomic_fetch_or(at, Type{0}, __ATOMIC_RELAXED); }

VOLATILE_ACCESS(1, uint8_t)
VOLATILE_ACCESS(2, uint16_t)
VOLATILE_ACCESS(4, uint32_t)
VOLATILE_ACCESS(8, uint64_t)
