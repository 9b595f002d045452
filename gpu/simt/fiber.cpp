#include "gpu/simt/fiber.hpp"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstring>

#include "core/errors.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define KV_ASAN_FIBERS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KV_ASAN_FIBERS 1
#endif
#endif
#if defined(KV_ASAN_FIBERS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define KV_ASAN_FIBERS 0
#endif

// Saves the callee-saved registers on the running stack, stores its pointer in *save, continues on the stack `load`. A new
// stack holds zeros for the registers, then the address of the entry, then a return address of 0 where backtraces end.
#if defined(__x86_64__)
#define KV_OWN_SWITCH 1
asm(R"(
.text
.p2align 4
.globl kvatlas_fiber_switch
.type kvatlas_fiber_switch,@function
kvatlas_fiber_switch:
.cfi_startproc
  pushq %rbp
  .cfi_adjust_cfa_offset 8
  pushq %rbx
  .cfi_adjust_cfa_offset 8
  pushq %r12
  .cfi_adjust_cfa_offset 8
  pushq %r13
  .cfi_adjust_cfa_offset 8
  pushq %r14
  .cfi_adjust_cfa_offset 8
  pushq %r15
  .cfi_adjust_cfa_offset 8
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  .cfi_adjust_cfa_offset -8
  popq %r14
  .cfi_adjust_cfa_offset -8
  popq %r13
  .cfi_adjust_cfa_offset -8
  popq %r12
  .cfi_adjust_cfa_offset -8
  popq %rbx
  .cfi_adjust_cfa_offset -8
  popq %rbp
  .cfi_adjust_cfa_offset -8
  ret
.cfi_endproc
.size kvatlas_fiber_switch,.-kvatlas_fiber_switch
)");
#elif defined(__aarch64__)
#define KV_OWN_SWITCH 1
asm(R"(
.text
.p2align 4
.globl kvatlas_fiber_switch
.type kvatlas_fiber_switch,%function
kvatlas_fiber_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size kvatlas_fiber_switch,.-kvatlas_fiber_switch
)");
#else
#define KV_OWN_SWITCH 0
#endif

#if KV_OWN_SWITCH
extern "C" void kvatlas_fiber_switch(void** save, void* load);
#endif

namespace kvatlas::gpu {

namespace {
constexpr std::uint64_t kCanary = 0x5AFE57AC5AFE57ACULL;
constexpr std::size_t kStack = KV_ASAN_FIBERS ? std::size_t{256} << 10 : std::size_t{64} << 10;
}  // namespace

struct FiberPool::State {
  struct Fiber {
    void* sp = nullptr;
    ucontext_t context{};
    void* fake_stack = nullptr;
    bool done = true;
  };
  SwitchKind kind;
  std::size_t page = 4096;
  std::byte* base = nullptr;
  std::size_t mapped = 0;
  std::vector<Fiber> fibers;
  Entry entry = nullptr;
  void* argument = nullptr;
  int running = -1;
  void* main_sp = nullptr;
  ucontext_t main_context{};
  void* main_fake = nullptr;
  const void* main_bottom = nullptr;
  std::size_t main_size = 0;

  std::byte* bottom(int fiber) const { return base + static_cast<std::size_t>(fiber) * (kStack + page) + page; }
};

/// The first function on a fiber's stack. It finds its pool here, since a fiber starts without arguments.
struct FiberMain {
  static thread_local FiberPool* pool;
  static void run() {
    FiberPool& p = *pool;
    auto& s = *p.state_;
#if KV_ASAN_FIBERS
    __sanitizer_finish_switch_fiber(nullptr, &s.main_bottom, &s.main_size);
#endif
    const int fiber = s.running;
    s.entry(s.argument, fiber);
    s.fibers[static_cast<std::size_t>(fiber)].done = true;
    p.yield();
  }
};
thread_local FiberPool* FiberMain::pool = nullptr;

SwitchKind best_switch() { return KV_OWN_SWITCH ? SwitchKind::own : SwitchKind::ucontext; }
std::size_t FiberPool::stack_bytes() { return kStack; }

FiberPool::FiberPool(SwitchKind kind) : state_(std::make_unique<State>()) {
  KV_ASSERT(kind == SwitchKind::ucontext || KV_OWN_SWITCH, "this build has a fiber switch of its own");
  state_->kind = kind;
  state_->page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

FiberPool::~FiberPool() {
  if (state_->base != nullptr) munmap(state_->base, state_->mapped);
}

void FiberPool::start(int count, Entry entry, void* argument) {
  State& s = *state_;
  const auto n = static_cast<std::size_t>(count);
  if (n > s.fibers.size()) {
    if (s.base != nullptr) munmap(s.base, s.mapped);
    s.mapped = n * (kStack + s.page);
    void* memory = mmap(nullptr, s.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw IoError(cat("stacks of ", count, " fibers need ", s.mapped, " bytes of address space, which the system refused"));
    s.base = static_cast<std::byte*>(memory);
    s.fibers.resize(n);
    for (int i = 0; i < count; ++i)  // an overflow faults instead of writing into the neighbour
      if (mprotect(s.bottom(i) - s.page, s.page, PROT_NONE) != 0) throw IoError("guard pages of fiber stacks were refused by the system");
  }
  s.entry = entry;
  s.argument = argument;
  for (int i = 0; i < count; ++i) {
    State::Fiber& f = s.fibers[static_cast<std::size_t>(i)];
    std::byte* bottom = s.bottom(i);
#if KV_ASAN_FIBERS
    __asan_unpoison_memory_region(bottom, kStack);
#endif
    std::memcpy(bottom, &kCanary, sizeof kCanary);
    f.done = false;
    f.fake_stack = nullptr;
    if (s.kind == SwitchKind::ucontext) {
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = bottom;
      f.context.uc_stack.ss_size = kStack;
      f.context.uc_link = nullptr;
      makecontext(&f.context, &FiberMain::run, 0);
      continue;
    }
    std::byte* top = bottom + kStack;  // a multiple of 16
    void (*const first)() = &FiberMain::run;
#if defined(__aarch64__)
    std::byte* sp = top - 160;
    std::memset(sp, 0, 160);
    std::memcpy(sp + 88, &first, sizeof first);  // x30
#else
    std::byte* sp = top - 64;  // six registers, entry, return address; the entry then finds rsp at 16n + 8
    std::memset(sp, 0, 64);
    std::memcpy(sp + 48, &first, sizeof first);
#endif
    f.sp = sp;
  }
}

void FiberPool::resume(int fiber) {
  State& s = *state_;
  FiberPool* const outer = FiberMain::pool;
  FiberMain::pool = this;
  s.running = fiber;
  State::Fiber& f = s.fibers[static_cast<std::size_t>(fiber)];
#if KV_ASAN_FIBERS
  __sanitizer_start_switch_fiber(&s.main_fake, s.bottom(fiber), kStack);
#endif
  if (s.kind == SwitchKind::ucontext) {
    swapcontext(&s.main_context, &f.context);
  } else {
#if KV_OWN_SWITCH
    kvatlas_fiber_switch(&s.main_sp, f.sp);
#endif
  }
#if KV_ASAN_FIBERS
  __sanitizer_finish_switch_fiber(s.main_fake, nullptr, nullptr);
#endif
  s.running = -1;
  FiberMain::pool = outer;
}

void FiberPool::yield() {
  State& s = *state_;
  State::Fiber& f = s.fibers[static_cast<std::size_t>(s.running)];
#if KV_ASAN_FIBERS
  __sanitizer_start_switch_fiber(f.done ? nullptr : &f.fake_stack, s.main_bottom, s.main_size);
#endif
  if (s.kind == SwitchKind::ucontext) {
    swapcontext(&f.context, &s.main_context);
  } else {
#if KV_OWN_SWITCH
    kvatlas_fiber_switch(&f.sp, s.main_sp);
#endif
  }
#if KV_ASAN_FIBERS
  __sanitizer_finish_switch_fiber(f.fake_stack, &s.main_bottom, &s.main_size);
#endif
}

bool FiberPool::finished(int fiber) const { return state_->fibers[static_cast<std::size_t>(fiber)].done; }

bool FiberPool::overflowed(int fiber) const { return std::memcmp(state_->bottom(fiber), &kCanary, sizeof kCanary) != 0; }

}  // namespace kvatlas::gpu
