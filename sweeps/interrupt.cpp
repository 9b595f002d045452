#include "sweeps/interrupt.hpp"

namespace kvatlas::sweep {

namespace {
std::atomic<bool> g_interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may store it");

extern "C" void on_signal(int signal) {
  // The second signal ends the process as usual: the store stands that too.
  if (g_interrupted.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}
}  // namespace

InterruptGuard::InterruptGuard() : old_interrupt_(std::signal(SIGINT, on_signal)), old_terminate_(std::signal(SIGTERM, on_signal)) { g_interrupted.store(false); }
InterruptGuard::~InterruptGuard() {
  std::signal(SIGINT, old_interrupt_);
  std::signal(SIGTERM, old_terminate_);
}
const std::atomic<bool>* InterruptGuard::flag() const { return &g_interrupted; }

}  // namespace kvatlas::sweep
