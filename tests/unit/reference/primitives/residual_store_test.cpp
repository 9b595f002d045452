#include "reference/primitives/residual_store.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;

namespace {

/// Two heads of width 8; rows are coded in pairs once four are there.
ResidualStore store() {
  return {2, 8, Side::key, Dtype::f16, {.bits = 4, .group_size = 2, .axis = GroupAxis::tokens},
          [](Tokens rows) { return rows.value < 4 ? Tokens(0) : Tokens(rows.value / 2 * 2 - 2); }};
}

Array rows(std::int64_t n) {
  test::Random random(5);
  Array a({2, n, 8});
  for (float& f : a.values()) f = random.normal();
  return a;
}

std::vector<NamedBuffer> buffers_of(const SideStore& s) {
  std::vector<NamedBuffer> out;
  s.buffers("k_", out);
  return out;
}

}  // namespace

TEST_CASE("rows stay plain until the prompt is done, then the rule alone says how many are coded", "[unit]") {
  ResidualStore s = store();
  s.append(rows(9).view());
  s.settle(false);
  REQUIRE(count_ledger(buffers_of(s)).of("codes", Side::key).value == 0);
  REQUIRE(count_ledger(buffers_of(s)).of("residual", Side::key).value == 2 * 9 * 8 * 2);
  s.settle(true);
  REQUIRE(s.size() == Tokens(9));
  REQUIRE(count_ledger(buffers_of(s)).of("codes", Side::key).value == 2 * 6 * 8 / 2);
  REQUIRE(count_ledger(buffers_of(s)).of("scales", Side::key).value == 2 * 3 * 8 * 2);
  REQUIRE(count_ledger(buffers_of(s)).of("zeros", Side::key).value == 2 * 3 * 8 * 2);
  REQUIRE(count_ledger(buffers_of(s)).of("residual", Side::key).value == 2 * 3 * 8 * 2);
}

TEST_CASE("reads cross from coded to plain rows", "[unit]") {
  ResidualStore s = store();
  s.append(rows(9).view());
  s.settle(true);
  Array all({9, 8}), part({4, 8});
  s.read(1, 0, all.view());
  s.read(1, 4, part.view());
  for (int t = 0; t < 4; ++t)
    for (int c = 0; c < 8; ++c) REQUIRE(part.view()(t, c) == all.view()(t + 4, c));
}

TEST_CASE("tokens can be taken back while no row was coded since", "[unit]") {
  ResidualStore s = store();
  s.append(rows(9).view());
  s.settle(true);  // 6 coded
  REQUIRE_THROWS_WITH(s.check_crop(Tokens(7)),
                      "crop to 7 tokens would take back rows that are quantized: 6 are, at that length 4 were");
  REQUIRE_THROWS_AS(s.crop(Tokens(5)), Unsupported);
  REQUIRE(s.size() == Tokens(9));
  s.crop(Tokens(8));
  REQUIRE(s.size() == Tokens(8));
}

TEST_CASE("a store loads what it saved and refuses heads of unequal length, unchanged", "[unit]") {
  ResidualStore s = store(), fresh = store();
  s.append(rows(9).view());
  s.settle(true);
  const std::vector<NamedBuffer> saved = buffers_of(s);
  fresh.load("k_", saved);
  REQUIRE(test::digest(buffers_of(fresh)) == test::digest(saved));
  std::vector<NamedBuffer> broken = saved;
  for (NamedBuffer& b : broken)
    if (b.name == "k_codes/head1" || b.name == "k_scales/head1" || b.name == "k_zeros/head1") b.bytes.resize(b.bytes.size() / 3 * 2);
  REQUIRE_THROWS_WITH(fresh.load("k_", broken), "buffer k_codes/head1 holds 4 rows, must hold 6 as in every head");
  REQUIRE(test::digest(buffers_of(fresh)) == test::digest(saved));
}
