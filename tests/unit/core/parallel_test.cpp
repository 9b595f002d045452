#include "core/parallel.hpp"

#include <atomic>
#include <stdexcept>
#include <vector>

#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("every item runs once, whatever the number of threads", "[unit]") {
  for (const int n : {1, 2, 5}) {
    set_threads(n);
    std::vector<std::atomic<int>> seen(100);
    parallel_for(100, [&](std::int64_t i) { ++seen[static_cast<std::size_t>(i)]; });
    for (const auto& s : seen) REQUIRE(s == 1);
    parallel_for(0, [](std::int64_t) { FAIL("no item, no call"); });
  }
  set_threads(2);
}

TEST_CASE("the first exception reaches the caller after all threads stopped", "[unit]") {
  set_threads(3);
  CHECK_THROWS_AS(parallel_for(50, [](std::int64_t i) { if (i == 7) throw std::runtime_error("seven"); }), std::runtime_error);
  set_threads(2);
}
