// Switching between the stacks of one thread.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef MACHINE_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#define MACHINE_UCONTEXT  // slower: it saves the signal mask, by a call of the kernel
#endif
#ifdef MACHINE_UCONTEXT
#include <ucontext.h>
#endif

namespace machine {

struct Context {
#ifndef MACHINE_UCONTEXT
  void* stack_pointer = nullptr;
#else
  ucontext_t state;
#endif
  const void* stack = nullptr;  // its lowest address; of the host's own stack it is learnt at the first switch
  size_t stack_bytes = 0;
  void (*entry)() = nullptr;
};

inline Context* last_left = nullptr;  // the context that made the last switch

// After every switch, on the new stack.
inline void arrived_on_stack(void* fake_stack) {
#ifdef MACHINE_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, last_left->stack ? nullptr : &last_left->stack,
                                  last_left->stack ? nullptr : &last_left->stack_bytes);
#else
  (void)fake_stack;
#endif
}

inline void before_switch(Context& from, Context& to, void** fake_stack) {
  last_left = &from;
#ifdef MACHINE_ASAN
  __sanitizer_start_switch_fiber(fake_stack, to.stack, to.stack_bytes);
#else
  (void)to, (void)fake_stack;
#endif
}

inline Context* entering = nullptr;

inline void enter_context() {
  arrived_on_stack(nullptr);
  entering->entry();
  __builtin_unreachable();
}

#ifndef MACHINE_UCONTEXT

// Saves the registers that a function has to keep on the old stack and takes those of the new one.
extern "C" void machine_switch_stack(void** old_stack_pointer, void* new_stack_pointer);
asm(R"(
.text
.globl machine_switch_stack
.hidden machine_switch_stack
.type machine_switch_stack, @function
machine_switch_stack:
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
.size machine_switch_stack, . - machine_switch_stack
)");

inline void make_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + bytes);
  top -= 2;                                        // as after a call: the stack pointer is 8 beyond a multiple of 16
  *top = reinterpret_cast<void*>(&enter_context);  // where the first switch returns to
  top -= 6;                                        // the registers
  context.stack_pointer = top;
  context.stack = stack;
  context.stack_bytes = bytes;
  context.entry = entry;
}

inline void switch_context(Context& from, Context& to) {
  void* fake_stack = nullptr;
  entering = &to;
  before_switch(from, to, &fake_stack);
  machine_switch_stack(&from.stack_pointer, to.stack_pointer);
  arrived_on_stack(fake_stack);
}

#else

inline void make_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, enter_context, 0);
  context.stack = stack;
  context.stack_bytes = bytes;
  context.entry = entry;
}

inline void switch_context(Context& from, Context& to) {
  void* fake_stack = nullptr;
  entering = &to;
  before_switch(from, to, &fake_stack);
  swapcontext(&from.state, &to.state);
  arrived_on_stack(fake_stack);
}

#endif

}  // namespace machine
