// Long work that somebody may call off: a door lends its thread a flag, the work looks at it between pieces.
#pragma once

#include <atomic>
#include <exception>

namespace kvatlas {

/// Ends work that was called off; what it was changing may be half done.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "interrupted"; }
};

/// The flag that work of this thread looks at, or null. parallel_for lends its caller's to its threads; each of its items begins
/// with an interruption_point().
const std::atomic<bool>* interruption_flag();

/// Lends this thread a flag for as long as the object lives.
class Interruptible {
 public:
  explicit Interruptible(const std::atomic<bool>* flag);
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

 private:
  const std::atomic<bool>* before_;
};

/// Throws Interrupted once this thread's flag is set; costs a load where no flag was lent.
void interruption_point();

}  // namespace kvatlas
