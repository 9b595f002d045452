#include "cli/commands/support/table.hpp"

#include <sstream>

#include "tests/catch.hpp"

using namespace kvatlas::cli;

TEST_CASE("columns align, the last one wraps, headings stand alone", "[unit]") {
  Table t({{"name"}, {"n", Align::right}, {"what"}});
  t.heading("first:");
  t.add({"a", "1", "x"});
  t.add({"\xC3\xA9\xC3\xA9", "12", std::string(60, 'w') + " " + std::string(40, 'v')});  // two characters in four bytes
  std::ostringstream out;
  t.print(out, 1);
  REQUIRE(out.str() == " name   n  what\n first:\n a      1  x\n \xC3\xA9\xC3\xA9    12  " + std::string(60, 'w') + "\n           " + std::string(40, 'v') + "\n");
}

TEST_CASE("figures are spelled with units people read", "[unit]") {
  REQUIRE(spell_bytes(0) == "0 B");
  REQUIRE(spell_bytes(8192) == "8,192 B");
  REQUIRE(spell_bytes(131072) == "128 KiB");
  REQUIRE(spell_bytes(1536.0 * 1048576) == "1.50 GiB");
  REQUIRE(spell_bytes(4294967296.0) == "4.00 GiB");
  REQUIRE(spell_count(0) == "0");
  REQUIRE(spell_count(999) == "999");
  REQUIRE(spell_count(1000) == "1,000");
  REQUIRE(spell_count(-1234567) == "-1,234,567");
  REQUIRE(spell_number(std::nullopt) == "-");
  REQUIRE(spell_number(0.0) == "0");
  REQUIRE(spell_number(3.0) == "3");
  REQUIRE(spell_number(0.06293) == "0.0629");
  REQUIRE(spell_number(12.345) == "12.35");
  REQUIRE(spell_number(19393.2) == "19,393");
  REQUIRE(spell_si(3.35e12, "B/s") == "3.35 TB/s");
  REQUIRE(spell_si(989e12, "flop/s") == "989 Tflop/s");
  REQUIRE(spell_si(0, "flop") == "0");
}

TEST_CASE("text wraps at spaces and long words stay whole", "[unit]") {
  REQUIRE(wrap("", 10) == std::vector<std::string>{""});
  REQUIRE(wrap("aa bb cc", 5) == std::vector<std::string>{"aa bb", "cc"});
  REQUIRE(wrap("aaaaaaaaaa b", 5) == std::vector<std::string>{"aaaaaaaaaa", "b"});
}
