#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/eviction/prefixkv/profile.hpp"
#include "reference/primitives/prompt_share.hpp"
#include "tests/catch.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

using Kept = std::vector<std::int64_t>;

/// Ten prompt tokens and six more; query t prompt_looks at one token with nearly all of its weight: 0 four times, 4 three times, 7 twice, 9 once.
Traced prompt_looks() {
  const std::vector<int> of{0, 0, 0, 0, 4, 4, 4, 7, 7, 9, 10, 11, 12, 13, 14, 15};
  const auto n = static_cast<std::int64_t>(of.size());
  Array q({1, n, n}), k({1, n, n});
  for (std::int64_t t = 0; t < n; ++t) {
    k.view()(0, t, t) = 1;
    q.view()(0, t, of[static_cast<std::size_t>(t)]) = 100;
  }
  return Traced(q.view(), k.view());
}

/// What is held after the prompt and after each of `steps` steps.
std::vector<Kept> held(const std::string& setting, int steps, const TensorMap* file = nullptr) {
  const Traced run = prompt_looks();
  const MethodChoice m = parse_choice(setting);
  const auto cache = m.method->open(m.row, run.shape(), {.trained = file});
  run.run(*cache, 0, 10);
  cache->end_prefill();
  std::vector<Kept> all{tokens_held(*cache)};
  for (std::int64_t t = 10; t < 10 + steps; ++t) {
    run.run(*cache, t, 1);
    all.push_back(tokens_held(*cache));
  }
  return all;
}

}  // namespace

TEST_CASE("prefixkv: layers stop at one part of their attention, by hand", "[unit]") {
  using methods::prefixkv_parts::leave_by_prefix, methods::prefixkv_parts::leave_of_share;
  const std::vector<std::vector<double>> scores{{1, 4, 8, 2, 1}, {4, 2, 4, 2, 4}};
  using Leave = std::vector<std::int64_t>;
  // Running sums: .5 .75 .875 .9375 1 and .25 .5 .75 .875 1. At a half the first 1 and 2 tokens stay.
  CHECK(leave_by_prefix(scores, 7, 0) == Leave{4, 3});
  CHECK(leave_by_prefix(scores, 7, 1) == Leave{3, 2});
  CHECK(leave_by_prefix(scores, 0, 0) == Leave{2, 1});   // 7 and 5 are too many: at 7/8
  CHECK(leave_by_prefix(scores, 12, 0) == Leave{4, 4});  // 7 is too few: at a quarter
  CHECK(leave_of_share(scores, 0.7, 0) == Leave{4, 3});
  CHECK(leave_of_share(scores, 0.35, 0) == Leave{2, 1});  // 3.5 of 7: halves, rounded down
  CHECK(leave_of_share({{0, 0}, {0, 0}}, 0.5, 2) == Leave{0, 0});
  CHECK(leave_of_share({{}}, 0.5, 2) == Leave{0});
}

TEST_CASE("prefixkv: sinks, the last token and the best of the others stay; generated tokens push rows out of a fixed slot", "[unit]") {
  // At half of the attention two tokens are reached, two are protected: 6 leave, scaled to 5. Slot 5 - 25 lies before the first: the middle.
  const auto middle = held("prefixkv:ratio=0.5", 4);
  CHECK(middle[0] == Kept{0, 1, 4, 7, 9});
  CHECK(middle[1] == Kept{0, 1, 4, 7, 9, 10});  // half of 11 tokens: six rows
  CHECK(middle[2] == Kept{0, 1, 7, 9, 10, 11});
  CHECK(middle[4] == Kept{0, 1, 9, 10, 11, 12, 13});
  CHECK(held("prefixkv:ratio=0.5,distance=-2", 2)[2] == Kept{0, 1, 4, 9, 10, 11});
  CHECK(held("prefixkv:ratio=0.5,distance=4", 2)[2] == Kept{0, 1, 4, 7, 10, 11});
  CHECK(held("prefixkv:ratio=0.5,distance=100", 2)[2] == Kept{0, 1, 4, 7, 9, 11});  // the newest stays
  // Rows among the sinks never leave; with four of them three are protected as well.
  CHECK(held("prefixkv:ratio=0.5,sinks=4,distance=2", 2)[2] == Kept{0, 1, 2, 3, 10, 11});
}

TEST_CASE("prefixkv: a step of two tokens drops what two steps drop", "[unit]") {
  const Traced run = prompt_looks();
  const auto cache = run.open("prefixkv:ratio=0.5");
  run.run(*cache, 0, 10);
  cache->end_prefill();
  run.run(*cache, 10, 4);
  CHECK(tokens_held(*cache) == Kept{0, 1, 9, 10, 11, 12, 13});
}

TEST_CASE("prefixkv: a file of shares says what leaves, halves to even", "[unit]") {
  TensorMap file;
  file["layer0.removed_share"] = {.dims = {1}, .values = {0.25F}};
  const auto kept = held("prefixkv", 2, &file);
  CHECK(kept[0] == Kept{0, 1, 2, 3, 4, 5, 7, 9});  // 2.5 leave: 2
  CHECK(kept[1].size() == 9);                      // 8.25 of 11
  CHECK(kept[2].size() == 9);
  file["layer0.removed_share"].values = {1.0F};
  CHECK_THROWS_WITH(held("prefixkv", 0, &file), "layer0.removed_share is 1, must be at least 0 and below 1");
}

TEST_CASE("prefixkv: rows after n steps in closed form", "[unit]") {
  CHECK(rows_of_share(10, 5, 0.5, 0) == 5);
  CHECK(rows_of_share(10, 5, 0.5, 1) == 6);
  CHECK(rows_of_share(10, 5, 0.5, 2) == 6);
  CHECK(rows_of_share(10, 10, 0, 7) == 17);
  CHECK(rows_of_share(5, 5, 0.9, 3) == 5);   // more is held than the share allows: one comes, one leaves
  CHECK(rows_of_share(5, 5, 0.9, 60) == 7);  // 6.5 of 65
}

TEST_CASE("prefixkv: refusals", "[unit]") {
  const MethodChoice m = parse_choice("prefixkv:distance=0");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 1, 1, 8)) == "distance is 0, must be below 0 (from the end) or above 0 (from the start)");
  // Layers that hold different prompts cannot share.
  const Traced run = prompt_looks();
  CacheShape two = uniform_shape(2, 1, 1, 16, Dtype::f32);
  const MethodChoice plain = parse_choice("prefixkv");
  const auto cache = plain.method->open(plain.row, two, {});
  run.run(*cache, 0, 4, 0);
  CHECK_THROWS_WITH(cache->end_prefill(), "a budget is shared over layers: all must hold the same prompt");
}
