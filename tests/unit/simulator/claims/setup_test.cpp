#include "simulator/claims/setup.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "reference/method.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {
const std::string kHead = "method,metric,published,context,batch,change,spec,note\n";
const std::string kStated = kHead + "kivi,speed,2,1024,1,,quantity=step_s compare=base/ours recipe=kivi model=llama-2-7b gpu=a100 prompt=1024,\n";
}  // namespace

TEST_CASE("a setup's baseline is the same deployment with the plain cache, but for what it says itself", "[unit]") {
  const ClaimSetup s = make_setup(parse_spec("quantity=step_s base.quantity=prefill_s compare=base/ours recipe=kivi:bits=4 plan=released model=llama-2-7b "
                                             "gpu=a100-80gb weights=int4_wo engine=transformers base.engine=vllm prompt=4096 output=12 batch=max assumed=gpu"));
  CHECK(s.ours.quantity == ClaimQuantity::step_s);
  CHECK(s.ours.recipe == "kivi:bits=4");
  CHECK(s.ours.released);
  CHECK(s.ours.engine == "transformers");
  CHECK_FALSE(s.ours.batch.has_value());
  CHECK(s.base.quantity == ClaimQuantity::prefill_s);
  CHECK(s.base.recipe == "full");
  CHECK_FALSE(s.base.released);
  CHECK(s.base.engine == "vllm");
  CHECK(s.base.weights == "int4_wo");
  CHECK(s.base.prompt == 4096);
  CHECK(s.base.output == 12);
  CHECK(s.compare == Compare::base_over_ours);
  CHECK(s.assumed == "gpu");
}

TEST_CASE("a setup that cannot be is refused with its key", "[unit]") {
  const auto make = [](std::string_view spec) { return make_setup(parse_spec(spec)); };
  REQUIRE_THROWS_WITH(make("quantity=step_s prompt"), "\"prompt\" is not key=value");
  REQUIRE_THROWS_WITH(make("prompt=1 prompt=2"), "prompt stands twice");
  REQUIRE_THROWS_WITH(make("verdict=reproduced"), "\"verdict\" is no key of a setup");
  REQUIRE_THROWS_WITH(make("base.speed=1"), "\"base.speed\" is no key of a setup");
  REQUIRE_THROWS_WITH(make("quantity=step_s model=llama-2-7b prompt=1"), "gpu is missing, step_s needs it");
  REQUIRE_THROWS_WITH(make("quantity=cache_bytes prompt=1"), "model is missing");
  REQUIRE_THROWS_WITH(make("quantity=cache_bytes model=llama-2-7b"), "prompt is missing");
  REQUIRE_THROWS_WITH(make("quantity=cache_bytes model=llama-2-7b prompt=0"), "prompt is \"0\", must be a whole number from 1 to 2^30");
  REQUIRE_THROWS_WITH(make("quantity=cache_bytes model=llama-2-7b prompt=5 shared=6"), "shared is 6, must be at most prompt (5)");
  REQUIRE_THROWS_WITH(make("utilization=1.5"), "utilization is \"1.5\", must be above 0 and at most 1");
  REQUIRE_THROWS_AS(make("quantity=speed"), InvalidArgument);
  REQUIRE_THROWS_AS(make("recipe=nobody"), InvalidArgument);
  REQUIRE_THROWS_AS(make("gpu=h999"), InvalidArgument);
}

TEST_CASE("an alternative changes what its name allows, quotes its source and follows the setup as stated", "[unit]") {
  CHECK(parse_setups(kStated + "kivi,speed,2,1024,1,batch choice,batch=max,\"section 5: largest batch\"\n").size() == 2);
  REQUIRE_THROWS_WITH(parse_setups(kStated + "kivi,speed,2,1024,1,batch choice,gpu=h100,quoted\n"), "setups.csv line 3: batch choice may not change gpu");
  REQUIRE_THROWS_WITH(parse_setups(kStated + "kivi,speed,2,1024,1,batch choice,batch=max,\n"), "setups.csv line 3: an alternative needs a note that quotes its source");
  REQUIRE_THROWS_WITH(parse_setups(kStated + "kivi,speed,2,1024,1,batch choice,,quoted\n"), "setups.csv line 3: an alternative must change something");
  REQUIRE_THROWS_WITH(parse_setups(kStated + "kivi,speed,3,1024,1,batch choice,batch=max,quoted\n"), "setups.csv line 3: an alternative must follow the setup as stated");
  REQUIRE_THROWS_AS(parse_setups(kStated + "kivi,speed,2,1024,1,luck,batch=max,quoted\n"), InvalidArgument);
  REQUIRE_THROWS_WITH(parse_setups(kStated + "kivi,speed,2,1024,1,,quantity=none,why\n"), "setups.csv line 3: the claim has a setup already, in line 2");
  REQUIRE_THROWS_WITH(parse_setups(kHead + "kivi,speed,2,,,,quantity=none,\n"), "setups.csv line 2: a figure that is not computed needs a note that says why");
  CHECK(allowed_changes().size() == 7);
}

TEST_CASE("every committed setup belongs to exactly one published figure, and every method has figures", "[unit]") {
  for (const SetupRow& row : all_setups()) {
    CAPTURE(row.line, row.method, row.metric, row.published);
    CHECK(std::ranges::count_if(all_claims(), [&](const Claim& c) { return row.belongs_to(c); }) == 1);
  }
  for (const Method* m : all_methods()) {
    CAPTURE(m->slug);
    CHECK(std::ranges::any_of(all_claims(), [&](const Claim& c) { return c.method == m->slug; }));
  }
  for (const Claim& c : all_claims()) {
    CAPTURE(c.method, c.metric);
    CHECK_NOTHROW(find_method(c.method));
  }
}
