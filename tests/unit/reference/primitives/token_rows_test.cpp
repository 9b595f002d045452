#include "reference/primitives/token_rows.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

TokenRows five_rows() {
  TokenRows rows(2, 2, 3, Dtype::f32);
  rows.add_words("mass", 8);
  rows.add_words("count", 4);
  Array k({2, 5, 2}), v({2, 5, 3});
  for (std::int64_t h = 0; h < 2; ++h)
    for (std::int64_t t = 0; t < 5; ++t) {
      k.view()(h, t, 0) = static_cast<float>(10 * h + t);
      v.view()(h, t, 2) = static_cast<float>(100 * h + t);
    }
  rows.append(k.view(), v.view());
  for (int h = 0; h < 2; ++h)
    for (std::int64_t t = 0; t < 5; ++t) {
      rows.words(0).set(h, t, (std::uint64_t{1} << 40) + static_cast<std::uint64_t>(t));
      rows.words(1).set(h, t, static_cast<std::uint64_t>(7 * t));
    }
  return rows;
}

std::int64_t bytes_of(const TokenRows& rows) {
  std::vector<NamedBuffer> out;
  rows.buffers("layer0/", out);
  std::int64_t total = 0;
  for (const NamedBuffer& b : out) total += static_cast<std::int64_t>(b.bytes.size());
  return total;
}

}  // namespace

TEST_CASE("rows and words of a head leave together, and the buffers shrink by exactly their bytes", "[unit]") {
  TokenRows rows = five_rows();
  constexpr std::int64_t kSlot = 2 * 4 + 3 * 4 + 8 + 4;
  REQUIRE(bytes_of(rows) == 10 * kSlot);
  rows.keep(1, {0, 3, 4});
  REQUIRE(rows.count(0) == 5);
  REQUIRE(rows.count(1) == 3);  // heads may differ
  REQUIRE(bytes_of(rows) == 8 * kSlot);
  REQUIRE(rows.keys(1).view()(1, 0) == 13);
  REQUIRE(rows.values(1).view()(2, 2) == 104);
  REQUIRE(rows.words(0).get(1, 1) == (std::uint64_t{1} << 40) + 3);
  REQUIRE(rows.words(1).all(1) == std::vector<std::uint64_t>{0, 21, 28});
  rows.truncate(1, 1);
  REQUIRE(rows.count(1) == 1);
  rows.words(1).add(0, 2, 1);
  REQUIRE(rows.words(1).get(0, 2) == 15);
  rows.drop_words();
  REQUIRE(bytes_of(rows) == 6 * (2 * 4 + 3 * 4));
}

TEST_CASE("saved rows load into an equal store, and a broken save changes nothing", "[unit]") {
  TokenRows rows = five_rows();
  rows.keep(0, {1, 2});
  std::vector<NamedBuffer> saved;
  rows.buffers("layer3/", saved);
  REQUIRE(saved.size() == 8);
  TokenRows fresh(2, 2, 3, Dtype::f32);
  fresh.add_words("mass", 8);
  fresh.add_words("count", 4);
  fresh.load("layer3/", saved);
  REQUIRE(fresh.keys(0).values() == rows.keys(0).values());
  REQUIRE(fresh.words(0).all(1) == rows.words(0).all(1));

  auto broken = saved;
  broken[2].bytes.resize(broken[2].bytes.size() + 12);
  REQUIRE_THROWS_WITH(fresh.load("layer3/", broken),
                      "buffer layer3/v_rows/head0 holds 3 slots, must hold as many as the keys (2)");
  broken = saved;
  broken[0].bytes.pop_back();
  REQUIRE_THROWS_WITH(fresh.load("layer3/", broken),
                      "buffer layer3/k_rows/head0 has 15 bytes, must be whole records of 8 bytes");
  REQUIRE_THROWS_WITH(fresh.load("layer4/", saved), "saved cache has no buffer \"layer4/k_rows/head0\"");
  REQUIRE(fresh.keys(1).values() == rows.keys(1).values());
}
