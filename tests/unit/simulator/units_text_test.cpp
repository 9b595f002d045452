#include "simulator/units_text.hpp"

#include "tests/catch.hpp"

using namespace kvatlas::sim;

TEST_CASE("a quantity is a finite number with a unit of its kind", "[unit]") {
  CHECK(parse_quantity(FigureKind::bytes, "1KiB") == 1024.0);
  CHECK(parse_quantity(FigureKind::bytes, "1 KB") == 1000.0);
  CHECK(parse_quantity(FigureKind::seconds, "2.5us") == 2.5 * 1e-6);
  CHECK(parse_quantity(FigureKind::count, "132") == 132.0);
  CHECK_FALSE(parse_quantity(FigureKind::bytes, "1"));
  CHECK_FALSE(parse_quantity(FigureKind::bytes, "1MB/s"));
  CHECK_FALSE(parse_quantity(FigureKind::bytes, "1mib"));
  CHECK_FALSE(parse_quantity(FigureKind::bytes, ""));
  CHECK_FALSE(parse_quantity(FigureKind::count, "12 SM"));
  CHECK_FALSE(parse_quantity(FigureKind::count, "inf"));
  CHECK_FALSE(parse_quantity(FigureKind::count, "1e300"));
  CHECK_FALSE(parse_quantity(FigureKind::fraction, "101%"));
}
