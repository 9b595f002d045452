#include "simulator/serving/block_pool.hpp"

#include "tests/catch.hpp"

using namespace kvatlas::sim;

TEST_CASE("a pool hands out what it has and takes it back", "[unit]") {
  BlockPool pool(10);
  REQUIRE(pool.take(7));
  REQUIRE_FALSE(pool.take(4));
  REQUIRE(pool.available() == 3);
  REQUIRE(pool.in_use() == 7);
  pool.give_back(7);
  REQUIRE(pool.available() == 10);
  REQUIRE(pool.consistent());
}

TEST_CASE("segments that nobody uses stay until their blocks are needed, the least recently used go first", "[unit]") {
  BlockPool pool(10);
  REQUIRE(pool.take(6));
  pool.publish(11, 2);
  pool.publish(12, 2);
  pool.publish(13, 2);
  REQUIRE(pool.private_blocks() == 0);
  REQUIRE(pool.in_use() == 6);
  pool.leave(12);
  pool.leave(13);
  pool.leave(11);  // order of last use: 12, 13, 11
  REQUIRE(pool.available() == 10);
  pool.use(12);    // in use again: cannot go
  REQUIRE(pool.available() == 8);
  REQUIRE(pool.take(5));
  REQUIRE(pool.holds(12));
  REQUIRE_FALSE(pool.holds(13));
  REQUIRE(pool.holds(11));
  REQUIRE(pool.take(3));
  REQUIRE_FALSE(pool.holds(11));
  REQUIRE_FALSE(pool.take(1));
  REQUIRE(pool.consistent());
}

TEST_CASE("a segment that two requests use is free only when both have left", "[unit]") {
  BlockPool pool(4);
  REQUIRE(pool.take(4));
  pool.publish(5, 4);
  pool.use(5);
  pool.leave(5);
  REQUIRE(pool.available() == 0);
  pool.leave(5);
  REQUIRE(pool.available() == 4);
  REQUIRE(pool.blocks_of(5) == 4);
}
