#include "core/parallel.hpp"

#include <atomic>
#include <stdexcept>
#include <vector>

#include "core/interruption.hpp"
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

TEST_CASE("work ends at its next item once the flag that its thread was lent is set", "[unit]") {
  for (const int n : {1, 3}) {
    set_threads(n);
    std::atomic<bool> stop{false};
    std::atomic<int> begun{0};
    {
      const Interruptible lent(&stop);
      CHECK_NOTHROW(interruption_point());
      CHECK_THROWS_AS(parallel_for(1000, [&](std::int64_t) {
                        if (++begun == 5) stop = true;
                      }), Interrupted);
      CHECK_THROWS_AS(interruption_point(), Interrupted);
    }
    CHECK(begun >= 5);
    CHECK(begun < 5 + n);
    CHECK_NOTHROW(interruption_point());  // the flag was lent to the block above alone
  }
  set_threads(2);
}
