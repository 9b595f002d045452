#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/fixture_f1.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace speckv_cases {  // a batch of tests compiles as one file

namespace {

using Kept = std::vector<std::int64_t>;

Kept kept_of(const std::string& setting) {
  const Traced f1 = fixture_f1();
  const auto cache = f1.open("speckv:observation_window=1,kernel=1," + setting);
  f1.run(*cache, 0, 6);
  cache->end_prefill();
  return tokens_held(*cache);
}

History history(std::int64_t prompt, std::int64_t generated) { return {.prompt = Tokens(prompt), .generated = Tokens(generated)}; }

double launches_of(const Plan& plan, KernelId kernel) {
  double n = 0;
  for (const KernelCall& call : plan.calls()) n += call.kernel == kernel ? call.launches : 0;
  return n;
}

}  // namespace

TEST_CASE("speckv: the worked example, with and without a drafted token", "[unit]") {
  // Without a draft queries 4 and 5 score tokens 0 to 3: joint maxima .288 .254 .338 .125.
  CHECK(kept_of("lookahead=0,budget=1") == Kept{4, 5});
  CHECK(kept_of("lookahead=0,budget=2") == Kept{2, 4, 5});
  CHECK(kept_of("lookahead=0,budget=3") == Kept{0, 2, 4, 5});
  CHECK(kept_of("lookahead=0,budget=5") == Kept{0, 1, 2, 3, 4, 5});
  // Token 5 is the draft's: queries 3, 4 and 5 score tokens 0 to 2, .372 .255 .364; the mean prefers token 2 (sums 1.44 .. 1.69).
  CHECK(kept_of("lookahead=1,budget=2") == Kept{0, 3, 4});
  CHECK(kept_of("lookahead=1,budget=2,reduce=mean") == Kept{2, 3, 4});
  CHECK(kept_of("lookahead=1,budget=4") == Kept{0, 1, 2, 3, 4});
  CHECK(kept_of("lookahead=1,budget=100") == Kept{0, 1, 2, 3, 4});  // a prompt within the budget: the draft alone leaves
  CHECK(kept_of("lookahead=40,budget=100") == Kept{0});             // the first token is never the draft's
}

TEST_CASE("speckv: the draft leaves when the prompt ends, what is generated stays and can be taken back", "[unit]") {
  const Traced run = random_traced(4, 2, 80, 8, 3);
  const auto cache = run.open("speckv:budget=20,observation_window=4,lookahead=10");
  run.run(*cache, 0, 50);
  CHECK(cache->kept(0, 0) == 50_tok);
  CHECK(count_ledger(cache->buffers()).of("window_queries", Side::both) == Bytes(15 * 4 * 8 * 4));
  cache->end_prefill();
  CHECK(cache->kept(0, 0) == 21_tok);
  for (const int head : {0, 1}) {
    const Kept kept = tokens_held(*cache, head);
    CHECK(Kept(kept.end() - 5, kept.end()) == Kept{35, 36, 37, 38, 39});
  }
  const auto ended = tokens_held(*cache);
  run.run(*cache, 50, 3);
  CHECK(cache->kept(0, 1) == 24_tok);
  cache->crop(50_tok);
  CHECK(tokens_held(*cache) == ended);
  REQUIRE_THROWS_WITH(cache->crop(49_tok), contains_text("the method has dropped or changed what would come back"));
}

TEST_CASE("speckv: plans count the draft's prompt, its steps and wider window scores", "[unit]") {
  const CacheShape shape = uniform_shape(32, 32, 8, 128, Dtype::bf16);
  const MethodChoice with = parse_choice("speckv:lookahead=64"), none = parse_choice("speckv:lookahead=64,draft=none"), bare = parse_choice("speckv:lookahead=0");
  const Plan drafted = with.method->prefill_plan(with.row, shape, history(8256, 0), {});
  CHECK(launches_of(drafted, KernelId::low_rank) == Approx(65 * (16 * 4 + 1)));  // four products a layer and the logits, once and 64 times
  CHECK(launches_of(drafted, KernelId::prefill_attention) == Approx(32 + 16));
  CHECK(launches_of(drafted, KernelId::decode_attention) == Approx(16 * 64));
  CHECK(launches_of(drafted, KernelId::window_score) == Approx(32));
  CHECK(launches_of(none.method->prefill_plan(none.row, shape, history(8256, 0), {}), KernelId::low_rank) == 0);
  CHECK(launches_of(bare.method->prefill_plan(bare.row, shape, history(8192, 0), {}), KernelId::low_rank) == 0);
  // Within the budget nothing is scored.
  CHECK(launches_of(with.method->prefill_plan(with.row, shape, history(512, 0), {}), KernelId::window_score) == 0);
  // 1,024 tokens and the last one stay: 1,025 rows of 2 * 8 * 128 values in 32 layers.
  CHECK(with.method->ledger_formula(with.row, shape, history(8256, 0), {}).total().value == std::int64_t{1025} * 2 * 8 * 128 * 32 * 2);
}

TEST_CASE("speckv: settings that cannot be are refused", "[unit]") {
  const Traced f1 = fixture_f1();
  REQUIRE_THROWS_WITH(f1.open("speckv:kernel=4"), contains_text("kernel is 4, must be odd"));
  REQUIRE_THROWS_WITH(f1.open("speckv:budget=8,observation_window=9"), contains_text("budget is 8, must be at least observation_window (9)"));
}

}  // namespace speckv_cases
