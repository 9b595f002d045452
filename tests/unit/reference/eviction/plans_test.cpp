// What eviction methods charge: kernels of a step and of a prompt that their algorithms run, and none that they do not.
#include <algorithm>

#include "reference/compose/recipe.hpp"
#include "reference/primitives/eviction/rule.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

const CacheShape kLlama = uniform_shape(32, 32, 8, 128, Dtype::bf16);

Plan step(const char* recipe, const History& h, const ContentCounts& counts = {}) {
  const MethodChoice m = parse_choice(recipe);
  return m.method->decode_plan(m.row, kLlama, h, counts);
}

Plan prompt(const char* recipe, Tokens tokens) {
  const MethodChoice m = parse_choice(recipe);
  return m.method->prefill_plan(m.row, kLlama, {.prompt = tokens}, {});
}

double launches(const Plan& plan, KernelId kernel) {
  double sum = 0;
  for (const KernelCall& c : plan.calls())
    if (c.kernel == kernel) sum += c.launches;
  return sum;
}

double bytes(const Plan& plan, KernelId kernel) {
  double sum = 0;
  for (const KernelCall& c : plan.calls())
    if (c.kernel == kernel) sum += c.launches * static_cast<double>(c.traffic.read_bytes + c.traffic.write_bytes);
  return sum;
}

}  // namespace

TEST_CASE("a step whose attention hands out its weights scores without another pass over the keys", "[unit]") {
  const History h{.prompt = 32768_tok, .generated = 16_tok};
  for (const char* recipe : {"cake:budget=8K", "tova:budget=8K"}) {
    CAPTURE(recipe);
    const Plan plan = step(recipe, h);
    CHECK(launches(plan, KernelId::window_score) == 0);
    CHECK(launches(plan, KernelId::mass_update) == 32);
    CHECK(launches(plan, KernelId::top_k) == 32);
  }
  CHECK(launches(prompt("cake:budget=8K", 32768_tok), KernelId::window_score) == 32);
}

TEST_CASE("a prompt whose weights teach nothing is read once", "[unit]") {
  CHECK(launches(prompt("lazy_eviction", 32768_tok), KernelId::window_score) == 0);
  CHECK(launches(prompt("h2o", 32768_tok), KernelId::window_score) == 32);
}

TEST_CASE("full and streaming heads attend in two calls of their own lengths", "[unit]") {
  const Plan plan = step("duo_attention:sparsity=0.5", {.prompt = 100000_tok, .generated = 1_tok});
  // 256 heads: 128.5 would be at the quantile, 128 are full, four a layer.
  CHECK(launches(plan, KernelId::decode_attention) == 64);
  const double full = 4.0 * 100001 * 512 * 32, streaming = 4.0 * 321 * 512 * 32;
  CHECK(bytes(plan, KernelId::decode_attention) == Approx(full + streaming).epsilon(0.02));
  CHECK(launches(step("duo_attention:sparsity=0", {.prompt = 1000_tok}), KernelId::decode_attention) == 32);
  // The rows held say how many heads are full: a quarter of 256 here.
  ContentCounts counts;
  counts.add("kept_rows", 64 * 100001 + 192 * 320);
  CHECK(bytes(step("duo_attention:sparsity=0.5", {.prompt = 100000_tok, .generated = 1_tok}, counts), KernelId::decode_attention) ==
        Approx(0.5 * full + 1.5 * streaming).epsilon(0.02));
}

TEST_CASE("thin keys are copied at their width", "[unit]") {
  const Plan plan = prompt("think:ratio=0.4,recent_window=0", 1000_tok);
  CHECK(launches(plan, KernelId::label_score) == 32);
  CHECK(bytes(plan, KernelId::copy) == 32.0 * 8 * 1000 * 77 * 2 * 2);  // 128 - 51 channels, read and written
}

TEST_CASE("a prompt up to the limit stays whole and grows so far, then holds at the budget", "[unit]") {
  const eviction::Rule rule{.budget = 1024_tok, .whole = 1056_tok, .trigger = eviction::Trigger::every_step};
  const auto at = [](std::int64_t prompt, std::int64_t generated) { return History{.prompt = Tokens(prompt), .generated = Tokens(generated)}; };
  CHECK(eviction::kept_rows(rule, {}, at(1050, 1)) == 1051);
  CHECK(eviction::kept_rows(rule, {}, at(1000, 56)) == 1056);
  CHECK(eviction::kept_rows(rule, {}, at(1000, 57)) == 1024);
  CHECK(eviction::most_rows(rule, {}, at(1000, 80)) == 1056);
  CHECK(eviction::attended_rows(rule, {}, at(1000, 57)) == 1057);
  CHECK(eviction::kept_rows(rule, {}, at(1057, 0)) == 1024);
  CHECK(eviction::most_rows(rule, {}, at(1057, 5)) == 1024);
  CHECK_FALSE(eviction::drops_rows(rule, {}, at(1000, 56)));
  CHECK(eviction::drops_rows(rule, {}, at(1000, 57)));

  // The cache does the same.
  const MethodChoice m = parse_choice("cake:budget=24,observation_window=4");
  const Scenario s{.method = m.method, .shape = uniform_shape(1, 1, 1, 16, Dtype::f32), .row = m.row, .prompt = 26, .chunk = 26, .decode = 4, .seed = 6};
  const eviction::Rule cake{.budget = 24_tok, .whole = 28_tok, .trigger = eviction::Trigger::every_step};
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  for (std::int64_t i = 0; i < 4; ++i) {
    run_decode(*cache, s, i, 1);
    CHECK(cache->kept(0, 0).value == eviction::kept_rows(cake, {}, at(26, i + 1)));
  }
}
