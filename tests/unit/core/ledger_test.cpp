#include "core/ledger.hpp"

#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("the high-water mark is the total unless a ledger says more, and sums over ledgers", "[unit]") {
  Ledger steady, cyclic;
  steady.add("rows", Side::key, Scope::token, 100_B);
  CHECK(steady.high_water() == 100_B);
  cyclic.add("rows", Side::key, Scope::token, 30_B);
  cyclic.set_high_water(70_B);
  CHECK(cyclic.total() == 30_B);
  CHECK(cyclic.high_water() == 70_B);
  steady.add(cyclic);
  CHECK(steady.total() == 130_B);
  CHECK(steady.high_water() == 170_B);
  steady.add("rows", Side::value, Scope::token, 50_B);
  CHECK(steady.high_water() == 180_B);
}
