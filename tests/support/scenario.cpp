#include "tests/support/scenario.hpp"

#include <algorithm>
#include <cstdlib>

namespace kvatlas::test {

int draws() {
  if (const char* n = std::getenv("KVATLAS_DRAWS")) return std::max(1, std::atoi(n));
#if defined(__SANITIZE_ADDRESS__) || !defined(NDEBUG)
  return 40;
#else
  return 1000;
#endif
}

}  // namespace kvatlas::test
