// SPDX-License-Identifier: Apache-2.0
// How one thread of the processor goes from one stack to another. For a single source file.
#pragma once

// Saves the registers that a call preserves, changes the stack, restores them from there.
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.globl emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
