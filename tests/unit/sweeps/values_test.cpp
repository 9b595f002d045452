#include "sweeps/values.hpp"

#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas::sweep;
using kvatlas::sweep::testing::sentence_of;

TEST_CASE("sizes are numbers, lists and ranges that multiply or add", "[unit]") {
  using V = std::vector<std::int64_t>;
  REQUIRE(parse_sizes("n", "32K") == V{32768});
  REQUIRE(parse_sizes("n", "1|4|2") == V{1, 4, 2});
  REQUIRE(parse_sizes("n", "512..4096x2") == V{512, 1024, 2048, 4096});
  REQUIRE(parse_sizes("n", "4K..16K+4K") == V{4096, 8192, 12288, 16384});
  REQUIRE(parse_sizes("n", "1..4") == V{1, 2, 3, 4});
  REQUIRE(parse_sizes("n", "3..10x2") == V{3, 6});
  REQUIRE(parse_sizes("n", "7..7x2") == V{7});
  REQUIRE(parse_sizes("n", "1..2|8") == V{1, 2, 8});
}

TEST_CASE("a bad range is refused with its text and what is allowed", "[unit]") {
  const std::string allowed = ", must be a number, a list A|B or a range A..BxC (multiply, C >= 2) or A..B+C (add, C > 0) with A <= B";
  for (const std::string bad : {"4..2", "1..8x1", "0..8x2", "1..8+0", "a..b", "..", "1..", "", "1|", "x", "1.5"})
    REQUIRE(sentence_of([&] { parse_sizes("contexts", bad); }).find("contexts is \"") == 0);
  REQUIRE(sentence_of([] { parse_sizes("contexts", "4..2"); }) == "contexts is \"4..2\"" + allowed);
  REQUIRE(sentence_of([] { parse_sizes("contexts", "1..1M"); }) == "contexts is \"1..1M\", must stand for at most 100000 values");
}

TEST_CASE("a recipe with lists stands for their product, the last changing fastest", "[unit]") {
  using V = std::vector<std::string>;
  REQUIRE(expand_recipe("kivi") == V{"kivi"});
  REQUIRE(expand_recipe("kivi:bits=2|4,group_size=32|64") ==
          V{"kivi:bits=2,group_size=32", "kivi:bits=2,group_size=64", "kivi:bits=4,group_size=32", "kivi:bits=4,group_size=64"});
  REQUIRE(expand_recipe("k=kivi:bits=2|4;v=kivi:bits=2") == V{"k=kivi:bits=2;v=kivi:bits=2", "k=kivi:bits=4;v=kivi:bits=2"});
  REQUIRE(expand_recipe("layers=0-1,last2:full;*:h2o:budget=512..1Kx2") == V{"layers=0-1,last2:full;*:h2o:budget=512", "layers=0-1,last2:full;*:h2o:budget=1024"});
  REQUIRE(expand_recipe("sinks=2|4:full;*:kivi") == V{"sinks=2:full;*:kivi", "sinks=4:full;*:kivi"});
  REQUIRE(expand_recipe("m:mode=avg|max,r=0.1..0.3+0.1") == V{"m:mode=avg,r=0.1", "m:mode=avg,r=0.2", "m:mode=avg,r=0.3", "m:mode=max,r=0.1", "m:mode=max,r=0.2", "m:mode=max,r=0.3"});
  REQUIRE(sentence_of([] { expand_recipe("kivi:bits=2||4"); }) == "bits is \"2||4\", must not have an empty entry");
}
