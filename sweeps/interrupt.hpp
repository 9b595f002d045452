// Ctrl-C as a flag: while a guard lives, SIGINT and SIGTERM ask a sweep to end after its current configurations.
#pragma once

#include <atomic>
#include <csignal>

namespace kvatlas::sweep {

class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  const std::atomic<bool>* flag() const;

 private:
  using Handler = void (*)(int);
  Handler old_interrupt_, old_terminate_;
};

}  // namespace kvatlas::sweep
