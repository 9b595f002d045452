#include "reference/primitives/arithmetic_coder.hpp"

#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::vector<std::uint8_t> round_trip(const std::vector<std::uint8_t>& symbols, std::size_t alphabet, std::size_t* bytes = nullptr) {
  std::vector<std::uint16_t> table(alphabet + 1);
  coder::fill_table(symbols, table);
  REQUIRE(coder::is_table(table));
  std::vector<std::byte> coded(3);  // what stands before a stream stays
  const std::size_t size = coder::encode(symbols, table, coded);
  REQUIRE(size >= 1);
  REQUIRE(coded.size() == 3 + size);
  if (bytes != nullptr) *bytes = size;
  std::vector<std::uint8_t> back(symbols.size());
  coder::decode(std::span<const std::byte>(coded).subspan(3), table, back);
  return back;
}

}  // namespace

TEST_CASE("arithmetic coder: eight symbols give the table and the two bytes of the worked example", "[unit]") {
  const std::vector<std::uint8_t> symbols{7, 7, 8, 7, 6, 7, 7, 9};
  std::vector<std::uint16_t> table(17);
  coder::fill_table(symbols, table);
  CHECK(table == std::vector<std::uint16_t>{0, 1, 2, 3, 4, 5, 6, 8196, 49147, 57338, 65529, 65530, 65531, 65532, 65533, 65534, 65535});
  std::vector<std::byte> coded;
  CHECK(coder::encode(symbols, table, coded) == 2);
  CHECK(coded == std::vector<std::byte>{std::byte{0x81}, std::byte{0x14}});
  std::vector<std::uint8_t> back(8);
  coder::decode(coded, table, back);
  CHECK(back == symbols);
}

TEST_CASE("arithmetic coder: every length and alphabet comes back, one symbol and one repeated symbol included", "[unit]") {
  Random random(5);
  for (const std::size_t alphabet : {1U, 2U, 12U, 16U, 32U, 255U, 256U})
    for (const std::size_t length : {1U, 2U, 31U, 32U, 33U, 255U, 256U, 1000U})
      for (const int skew : {0, 1, 2}) {
        CAPTURE(alphabet, length, skew);
        std::vector<std::uint8_t> symbols(length);
        for (auto& s : symbols) {
          std::int64_t x = random.below(static_cast<std::int64_t>(alphabet));
          for (int i = 0; i < 4 * skew; ++i) x = std::min(x, random.below(static_cast<std::int64_t>(alphabet)));
          s = static_cast<std::uint8_t>(x);
        }
        std::size_t bytes = 0;
        REQUIRE(round_trip(symbols, alphabet, &bytes) == symbols);
        // Below 16 bits a symbol whatever it is: an interval of the table has at least one of 65,536 parts.
        REQUIRE(bytes <= 2 * length + 5);
        const std::vector<std::uint8_t> same(length, static_cast<std::uint8_t>(alphabet - 1));
        REQUIRE(round_trip(same, alphabet) == same);
      }
}

TEST_CASE("arithmetic coder: a stream under a table that fits badly still comes back", "[unit]") {
  // Long runs that straddle the middle keep bits pending for many symbols.
  std::vector<std::uint16_t> table{0, 32767, 32769, 65535};
  std::vector<std::uint8_t> symbols(500, 1);
  symbols[250] = 2;
  symbols[499] = 0;
  std::vector<std::byte> coded;
  coder::encode(symbols, table, coded);
  std::vector<std::uint8_t> back(symbols.size());
  coder::decode(coded, table, back);
  CHECK(back == symbols);
}

TEST_CASE("arithmetic coder: damaged bytes give symbols of the alphabet, and a damaged table is told apart", "[unit]") {
  std::vector<std::uint16_t> table(17);
  coder::fill_table(std::vector<std::uint8_t>{1, 2, 3, 4, 5}, table);
  Random random(9);
  std::vector<std::byte> noise(40);
  for (auto& b : noise) b = static_cast<std::byte>(random.below(256));
  std::vector<std::uint8_t> symbols(300);
  coder::decode(noise, table, symbols);
  for (const auto s : symbols) REQUIRE(s < 16);
  coder::decode({}, table, symbols);
  for (const auto s : symbols) REQUIRE(s < 16);
  table[5] = table[4];
  CHECK_FALSE(coder::is_table(table));
  CHECK_FALSE(coder::is_table(std::vector<std::uint16_t>{0, 5, 65534}));
  CHECK_FALSE(coder::is_table(std::vector<std::uint16_t>{1, 5, 65535}));
}
