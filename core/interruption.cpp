#include "core/interruption.hpp"

namespace kvatlas {

namespace {
thread_local const std::atomic<bool>* t_flag = nullptr;
}  // namespace

const std::atomic<bool>* interruption_flag() { return t_flag; }

Interruptible::Interruptible(const std::atomic<bool>* flag) : before_(t_flag) { t_flag = flag; }
Interruptible::~Interruptible() { t_flag = before_; }

void interruption_point() {
  if (t_flag != nullptr && t_flag->load(std::memory_order_relaxed)) throw Interrupted();
}

}  // namespace kvatlas
