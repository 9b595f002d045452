#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

Scenario mikv_scenario(const std::string& recipe, std::int64_t prompt) {
  const MethodChoice m = parse_choice(recipe);
  return {.method = m.method, .shape = uniform_shape(1, 4, 2, 32, Dtype::f16, {.rotary_dim = 32}), .row = m.row, .prompt = prompt, .chunk = prompt, .decode = 0, .seed = 5};
}

}  // namespace

TEST_CASE("mikv: the favoured tokens and the newest stay plain, the others are coded once; nothing is evicted", "[unit]") {
  const Scenario s = mikv_scenario("mikv:group_size=32", 30);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  const auto of = [&](const char* component, Side side) { return count_ledger(cache->buffers()).of(component, side).value; };
  CHECK(of("rows", Side::key) == 6 * 2 * 32 * 2);
  CHECK(of("codes", Side::key) == 24 * 2 * 32 / 4);
  CHECK(of("mass", Side::both) == 6 * 2 * 8);
  CHECK(of("important", Side::both) == 2 * 4);
  CHECK(cache->kept(0, 1) == Tokens(30));
  const auto buffers = cache->buffers();
  const auto& mask = find_buffer(buffers, "layer0/important/head0").bytes;
  CHECK((std::to_integer<int>(mask[3]) & 0x38) == 0x38);  // tokens 27, 28, 29: the newest half of six
  run_decode(*cache, s, 0, 5);
  CHECK(of("rows", Side::key) == 7 * 2 * 32 * 2);
  CHECK(cache->kept(0, 0) == Tokens(35));
}

TEST_CASE("mikv: two heads by hand: the balancer is the root of largest query over largest key", "[unit]") {
  const MethodChoice m = parse_choice("mikv:importance=0,group_size=8");
  const CacheShape shape = uniform_shape(1, 2, 1, 8, Dtype::f32);
  const auto cache = m.method->open(m.row, shape, {});
  Array q({2, 2, 8}), k({1, 2, 8}), v({1, 2, 8}), out({2, 2, 8});
  q.view()(0, 0, 0) = -4;
  q.view()(1, 1, 0) = 9;  // the largest over both query heads
  k.view()(0, 1, 0) = 4;
  q.view()(0, 1, 1) = 1;  // no key in this channel
  const std::vector<std::int64_t> positions{0, 1};
  cache->forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {2}}}, out.view());
  cache->end_prefill();
  std::vector<float> balancer(8);
  num::load(Dtype::f32, find_buffer(cache->buffers(), "layer0/balancer").bytes, balancer);
  CHECK(balancer == std::vector<float>{1.5F, 1, 1, 1, 1, 1, 1, 1});
}

TEST_CASE("mikv: 5 bits a value at a fifth of the tokens plain and 2 bits in groups of 128 for the rest", "[unit]") {
#ifndef KVATLAS_POISON_FORMULAS
  const MethodChoice m = parse_choice("mikv:group_size=128");
  const CacheShape shape = uniform_shape(1, 8, 8, 128, Dtype::f16);
  const Ledger ledger = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(1000)});
  const Side side = Side::value;
  CHECK(8 * ledger.total(side).value == 5 * 1000 * 1024);
  CHECK(ledger.of("important", Side::both).value == 8 * 125);
  CHECK(ledger.of("mass", Side::both).value == 8 * 200 * 8);
  CHECK(ledger.of("balancer", Side::key).value == 4 * 1024);
#endif
}

TEST_CASE("mikv: groups that do not divide a head are refused", "[unit]") {
  const MethodChoice m = parse_choice("mikv");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 2, 1, 32, Dtype::bf16)) == "group_size is 64, must divide head_dim (32)");
}
