#include "reference/claims.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

namespace {
const std::string kHeader = "method,metric,published,unit,model,gpu,context,batch,baseline,setup,source\n";
}

TEST_CASE("claims are read as RFC 4180 says: quotes, commas, doubled quotes, line ends", "[unit]") {
  const auto claims = parse_claims(kHeader + "kivi,peak_memory,2.6,x,Llama-2-7B,A100,,,fp16,\"batch \"\"max\"\", K2\",\"arXiv 1, fig. 4\"\r\n\nh2o,throughput,29,x,,,2048,8,,\"two\nlines\",x\n");
  REQUIRE(claims.size() == 2);
  REQUIRE(claims[0].method == "kivi");
  REQUIRE(claims[0].setup == "batch \"max\", K2");
  REQUIRE(claims[0].source == "arXiv 1, fig. 4");
  REQUIRE(claims[0].conditions() == "Llama-2-7B, A100, against fp16, batch \"max\", K2");
  REQUIRE(claims[1].conditions() == "context 2048, batch 8, two\nlines");
}

TEST_CASE("a broken table of claims is refused with its line", "[unit]") {
  REQUIRE_THROWS_WITH(parse_claims("a,b\n"), "claims.csv line 1 has 2 cells, must have 11");
  REQUIRE_THROWS_WITH(parse_claims("method,metric,c,d,e,f,g,h,i,j,k\n"), "claims.csv line 1 names column 3 \"c\", must be published");
  REQUIRE_THROWS_WITH(parse_claims(kHeader + "x,y\n"), "claims.csv line 2 has 2 cells, must have 11");
  REQUIRE_THROWS_WITH(parse_claims(kHeader + "x,\"y\n"), "claims.csv line 2 has a quote that does not end");
}

TEST_CASE("the embedded table of claims can be read", "[unit]") { REQUIRE_NOTHROW(all_claims()); }
