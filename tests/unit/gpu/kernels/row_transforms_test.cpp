#include "gpu/kernels/row_transforms.hpp"

#include "gpu/verify/case.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;

namespace {
void check(const Verdict& v) {
  CAPTURE(v.kernel, v.format, v.shape);
  CHECK(v.why == "");
  CHECK(v.bit_exact);
  CHECK(v.counted.reads == v.planned.reads);
  CHECK(v.counted.writes == v.planned.writes);
  CHECK(v.counted.writes.sectors == v.counted.writes.distinct_sectors);
}
}  // namespace

TEST_CASE("Hadamard and rotary embedding of rows have the reference's bits under every schedule and move what their entries say", "[unit]") {
  const auto schedules = all_schedules(2);
  for (const RowInstance& i : row_instances())
    for (const std::int64_t tokens : {1, 6, 37}) {
      check(verify_hadamard(i, {.heads = 2, .tokens = tokens}, schedules));
      check(verify_rope(i, {.heads = 3, .tokens = tokens}, schedules));
      check(verify_rope(i, {.heads = 1, .tokens = tokens, .inverse = true}, schedules));
    }
}
