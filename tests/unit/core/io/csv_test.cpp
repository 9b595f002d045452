#include "core/io/csv.hpp"

#include <array>

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

namespace {
constexpr std::array<std::string_view, 2> kNames{"a", "b"};
}

TEST_CASE("a table of cells keeps quotes, commas and line ends inside quotes, and knows where a row began", "[unit]") {
  const auto rows = parse_csv("a,b\n1,\"x, \"\"y\"\"\"\r\n\n\"two\nlines\",\nlast,row", "t.csv", kNames);
  REQUIRE(rows.size() == 3);
  CHECK(rows[0].line == 2);
  CHECK(rows[0].cells == std::vector<std::string>{"1", "x, \"y\""});
  CHECK(rows[1].line == 4);
  CHECK(rows[1].cells == std::vector<std::string>{"two\nlines", ""});
  CHECK(rows[2].line == 6);
  CHECK(rows[2].cells == std::vector<std::string>{"last", "row"});
  CHECK(parse_csv("a,b\n", "t.csv", kNames).empty());
}

TEST_CASE("a broken table of cells is refused with file and line", "[unit]") {
  REQUIRE_THROWS_WITH(parse_csv("a,c\n", "t.csv", kNames), "t.csv line 1 names column 2 \"c\", must be b");
  REQUIRE_THROWS_WITH(parse_csv("\na,b\n", "t.csv", kNames), "t.csv line 1 names column 1 \"\", must be a");
  REQUIRE_THROWS_WITH(parse_csv("a,b\n1,2\n1,2,3\n", "t.csv", kNames), "t.csv line 3 has 3 cells, must have 2");
  REQUIRE_THROWS_WITH(parse_csv("a,b\n1,\"2\n", "t.csv", kNames), "t.csv line 2 has a quote that does not end");
}

TEST_CASE("a table with any header leaves out comments and blank rows and names short ones", "[unit]") {
  const CsvTable table = parse_csv("# who measured\n\nb,a\r\n# between\n1,2\n", "t.csv");
  CHECK(table.header == std::vector<std::string>{"b", "a"});
  REQUIRE(table.rows.size() == 1);
  CHECK(table.rows[0].line == 5);
  CHECK(table.rows[0].cells == std::vector<std::string>{"1", "2"});
  REQUIRE_THROWS_WITH(parse_csv("# nothing\n", "t.csv"), "t.csv is empty, must have a header line");
  REQUIRE_THROWS_WITH(parse_csv("a,b\n1\n", "t.csv"), "t.csv line 2 has 1 cells, must have 2");
}
