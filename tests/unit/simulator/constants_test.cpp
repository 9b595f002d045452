#include "simulator/constants.hpp"

#include <set>
#include <string>

#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

TEST_CASE("every constant has a unique name, a unit and a source; their number is part of the claim", "[unit]") {
  std::set<std::string> names;
  for (const Constant& c : all_constants()) {
    CAPTURE(c.name);
    CHECK(names.insert(c.name).second);
    CHECK(std::string(c.unit).size() > 0);
    CHECK(std::string(c.source).size() > 5);
    CHECK(c.value > 0);
  }
  CHECK(all_constants().size() == static_cast<std::size_t>(kConstantCount));
}

TEST_CASE("profiles of kernels have at most six constants each", "[unit]") {
  for (const ConstantGroup g : {ConstantGroup::attention, ConstantGroup::prefill, ConstantGroup::other_kernel}) {
    int n = 0;
    for (const Constant& c : all_constants()) n += c.group == g ? 1 : 0;
    CHECK(n <= 6);
  }
}

TEST_CASE("every format has a rate; only plain and fp8 count as calibrated", "[unit]") {
  for (const CodeKind kind : {CodeKind::plain, CodeKind::fp8, CodeKind::integer, CodeKind::fp4, CodeKind::table})
    for (const int bits : {1, 2, 3, 4, 5, 8, 16}) {
      const ValueRate& r = value_rate("9.0", {.kind = kind, .bits = bits});
      CHECK(r.ideal > 0);
      CHECK(r.calibrated == (kind == CodeKind::plain || kind == CodeKind::fp8));
      CHECK((r.calibrated || r.released < r.ideal));
    }
  CHECK(value_rate("10.0", {.kind = CodeKind::fp8, .bits = 8}).ideal == 34);
  CHECK(value_rate("8.9", {.kind = CodeKind::fp8, .bits = 8}).ideal == 12);
}
