#include "reference/claims.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("claims are read as RFC 4180 says: quotes, commas, doubled quotes, line ends", "[unit]") {
  const auto claims = parse_claims("method,metric,published,setup,source\r\nkivi,peak_memory,2.6x,\"Llama-2-7B, batch \"\"max\"\"\",\"arXiv 1, fig. 4\"\n\nh2o,throughput,29x,\"two\nlines\",x\n");
  REQUIRE(claims.size() == 2);
  REQUIRE(claims[0].method == "kivi");
  REQUIRE(claims[0].setup == "Llama-2-7B, batch \"max\"");
  REQUIRE(claims[0].source == "arXiv 1, fig. 4");
  REQUIRE(claims[1].setup == "two\nlines");
}

TEST_CASE("a broken table of claims is refused with its line", "[unit]") {
  REQUIRE_THROWS_WITH(parse_claims("a,b\n"), "claims.csv line 1 has 2 cells, must have 5");
  REQUIRE_THROWS_WITH(parse_claims("a,b,c,d,e\n"), "claims.csv line 1 must be method,metric,published,setup,source");
  REQUIRE_THROWS_WITH(parse_claims("method,metric,published,setup,source\nx,y\n"), "claims.csv line 2 has 2 cells, must have 5");
  REQUIRE_THROWS_WITH(parse_claims("method,metric,published,setup,source\nx,\"y\n"), "claims.csv line 2 has a quote that does not end");
}

TEST_CASE("the embedded table of claims can be read", "[unit]") { REQUIRE_NOTHROW(all_claims()); }
