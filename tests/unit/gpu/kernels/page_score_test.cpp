#include "gpu/kernels/page_score.hpp"

#include "gpu/verify/case.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;

TEST_CASE("page scores have the reference's bits under every schedule and move what their entry says", "[unit]") {
  const auto schedules = all_schedules(2);
  for (const PageScoreInstance& i : page_score_instances())
    for (const std::int64_t pages : {1, 4, 16, 37}) {
      const Verdict v = verify_page_score(i, {.heads = 2, .pages = pages}, schedules);
      CAPTURE(v.format, v.shape);
      CHECK(v.why == "");
      CHECK(v.bit_exact);
      CHECK(v.counted.reads == v.planned.reads);
      CHECK(v.counted.writes == v.planned.writes);
      CHECK(v.bank_conflicts == 0);
    }
}
