#include "simulator/serving/serving.hpp"

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "simulator/serving/cost.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

ServingSetup setup_of(const char* gpu, const char* recipe = "full") {
  ServingSetup s;
  s.deployment = {.model = &models::find_model("llama-3.1-8b"), .gpu = find_gpu(gpu), .recipe = Recipe::parse(recipe)};
  return s;
}

}  // namespace

TEST_CASE("one request takes its prompt's pass and one step a further token", "[unit]") {
  const ServingSetup setup = setup_of("h100-sxm");
  const Evaluator e(setup.deployment);
  const ServingReport r = serve(setup, make_stream({.requests = 1, .prompt = Tokens(4096), .output = Tokens(101), .users = 1}));
  REQUIRE(r.completed == 1);
  REQUIRE(r.ttft.p50 == Approx(e.prefill_s(Tokens(4096), 1)).epsilon(0.01));
  REQUIRE(r.tpot.p50 == Approx(e.step(Tokens(4146), 1).step_s).epsilon(0.01));
  REQUIRE(r.e2e.p50 == r.ttft.p50 + 100 * r.tpot.p50);
  REQUIRE(r.queue.p50 == 0);
  REQUIRE(r.requests_per_s == 1 / r.e2e.p50);
  // 4,096 tokens are 256 pages; 100 tokens follow into the cache, 7 more pages; the last token is never stored.
  REQUIRE(r.most_blocks_used <= 263);
}

TEST_CASE("interpolated steps are within a percent of computed ones", "[unit]") {
  for (const char* recipe : {"full", "fp8_kv", "kivi:bits=2", "snapkv", "streaming_llm"}) {
    CAPTURE(recipe);
    Deployment d = setup_of("h100-sxm", recipe).deployment;
    ServingCost cost(d, Tokens(3000), Tokens(300), Tokens(64000), 64);
    for (const std::int64_t prompt : {700, 3000, 9111, 60000})
      for (const std::int64_t batch : {1, 7, 32}) {
        const double generated = 333;
        const double exact = Evaluator(d).step(Tokens(prompt), Tokens(prompt + 333), static_cast<int>(batch)).step_s;
        const double looked = cost.pass_s({.decodes = batch, .prompt_tokens = static_cast<double>(batch * prompt), .generated_tokens = static_cast<double>(batch) * generated});
        CAPTURE(prompt, batch);
        CHECK(looked == Approx(exact).epsilon(0.01));
      }
    for (const std::int64_t prompt : {700, 3000, 9111, 60000}) {
      CAPTURE(prompt);
      CHECK(cost.prompt_kernels_s(0, prompt) + cost.prompt_kernels_s(prompt, prompt) == Approx(cost.model().prompt_kernels_s(Tokens(prompt)) - cost.model().prompt_kernels_s(Tokens(1))).epsilon(0.02));
    }
  }
}

TEST_CASE("equal seeds give equal runs and other seeds others", "[unit]") {
  const ServingSetup setup = setup_of("h100-sxm");
  StreamRecipe recipe{.requests = 300, .prompt = Tokens(1000), .output = Tokens(100), .spread = 0.5, .rate = 5, .seed = 7};
  const ServingReport a = serve(setup, make_stream(recipe)), b = serve(setup, make_stream(recipe));
  REQUIRE(a.e2e.mean == b.e2e.mean);
  REQUIRE(a.ttft.p99 == b.ttft.p99);
  recipe.seed = 8;
  REQUIRE(serve(setup, make_stream(recipe)).e2e.mean != a.e2e.mean);
}

TEST_CASE("Poisson arrivals come at their rate, spread lengths around their mean", "[unit]") {
  const Stream s = make_stream({.requests = 20000, .prompt = Tokens(1000), .output = Tokens(100), .spread = 0.5, .rate = 5});
  REQUIRE(s.requests.back().arrive_s == Approx(4000).epsilon(0.03));
  double prompt = 0;
  for (const Request& r : s.requests) {
    prompt += r.prompt;
    REQUIRE(r.prompt >= 500);
    REQUIRE(r.prompt <= 1500);
  }
  REQUIRE(prompt / 20000 == Approx(1000).epsilon(0.01));
}

TEST_CASE("a long queue is seen in TTFT, a smaller share of memory in preemptions", "[unit]") {
  ServingSetup setup = setup_of("rtx-4090");
  const Stream light = make_stream({.requests = 100, .prompt = Tokens(1000), .output = Tokens(200), .rate = 0.2});
  const Stream heavy = make_stream({.requests = 100, .prompt = Tokens(1000), .output = Tokens(200), .rate = 50});
  const ServingReport a = serve(setup, light), b = serve(setup, heavy);
  REQUIRE(b.ttft.p50 > 5 * a.ttft.p50);
  REQUIRE(a.preemptions == 0);
  REQUIRE(b.preemptions > 0);
  REQUIRE(b.completed == 100);
  setup.slo.ttft_s = 2 * a.ttft.p50;
  REQUIRE(serve(setup, light).good_share > 0.9);
  REQUIRE(serve(setup, heavy).goodput_per_s < serve(setup, heavy).requests_per_s);
}

TEST_CASE("a conversation finds what came before it, and a warm cache what all share", "[unit]") {
  const ServingSetup setup = setup_of("h100-sxm");
  const ServingReport turns = serve(setup, make_stream({.requests = 40, .prompt = Tokens(512), .output = Tokens(64), .turns = 4, .users = 1}));
  // Prompts of 512, 1,088, 1,664 and 2,240 tokens; all but the newest 512 of each are found.
  REQUIRE(turns.prefix_hit_rate == Approx((576.0 + 1152 + 1728) / (512 + 1088 + 1664 + 2240)));
  StreamRecipe shared{.requests = 10, .prompt = Tokens(1000), .output = Tokens(10), .prefix_hit = 0.64, .users = 1};
  REQUIRE(serve(setup, make_stream(shared)).counts.hit_tokens == 9 * 640);
  shared.warm = true;
  REQUIRE(serve(setup, make_stream(shared)).counts.hit_tokens == 10 * 640);
}

TEST_CASE("disaggregation keeps prompts out of the way of decodes and moves every cache", "[unit]") {
  ServingSetup setup = setup_of("h100-sxm");
  setup.deployment.chunk = Tokens(8192);
  const Stream s = make_stream({.requests = 200, .prompt = Tokens(4000), .output = Tokens(100), .rate = 5});
  const ServingReport together = serve(setup, s);
  setup.disaggregated = true;
  const ServingReport apart = serve(setup, s);
  REQUIRE(apart.completed == 200);
  REQUIRE(apart.blocks_returned);
  REQUIRE(apart.tpot.p99 < together.tpot.p99);
  REQUIRE(apart.gpu_hours > 1.5 * together.gpu_hours);
}

TEST_CASE("requests that could never fit are refused with their sentence, setups that cannot be are errors", "[unit]") {
  ServingSetup setup = setup_of("rtx-4090");
  const ServingReport r = serve(setup, make_stream({.requests = 3, .prompt = Tokens(100000), .output = Tokens(10), .users = 1}));
  REQUIRE(r.refused == 3);
  REQUIRE(r.completed == 0);
  REQUIRE(r.refused_why.find("a request of 100000 prompt and 10 output tokens takes 6251 blocks, a replica has ") == 0);
  setup.sequences = 0;
  REQUIRE_THROWS_WITH(serve(setup, make_stream({.requests = 3, .prompt = Tokens(10), .output = Tokens(10), .users = 1})), "sequences is 0, must be from 1 to 65536");
  REQUIRE_THROWS_WITH(make_stream({.requests = 3, .prompt = Tokens(10), .output = Tokens(10)}), "rate is 0, must be positive requests/s");
  ServingSetup big = setup_of("rtx-4090");
  big.deployment.model = &models::find_model("llama-3.1-70b");
  REQUIRE_THROWS_AS(serve(big, make_stream({.requests = 3, .prompt = Tokens(10), .output = Tokens(10), .users = 1})), InvalidArgument);
}

TEST_CASE("percentiles are nearest rank", "[unit]") {
  std::vector<double> v;
  for (int i = 1; i <= 200; ++i) v.push_back(i);
  const Percentiles p = percentiles(v);
  REQUIRE(p.p50 == 100);
  REQUIRE(p.p90 == 180);
  REQUIRE(p.p99 == 198);
  REQUIRE(p.most == 200);
  REQUIRE(percentiles({3.0}).p50 == 3.0);
  REQUIRE(percentiles({}).count == 0);
}

TEST_CASE("a timeline is JSON whose spans follow one another", "[unit]") {
  ServingSetup setup = setup_of("h100-sxm");
  setup.most_spans = 1000;
  const Stream s = make_stream({.requests = 20, .prompt = Tokens(4000), .output = Tokens(50), .rate = 5});
  const ServingReport r = serve(setup, s);
  const auto json = nlohmann::json::parse(serving_timeline(r, s));
  double end = 0;
  int spans = 0, begins = 0, ends = 0;
  for (const auto& e : json["traceEvents"]) {
    if (e["ph"] == "X") {
      ++spans;
      REQUIRE(e["ts"].get<double>() >= end - 0.01);
      end = e["ts"].get<double>() + e["dur"].get<double>();
    }
    begins += e["ph"] == "b" ? 1 : 0;
    ends += e["ph"] == "e" ? 1 : 0;
  }
  REQUIRE(spans == static_cast<int>(r.counts.spans));
  REQUIRE(begins == 60);
  REQUIRE(ends == 60);
}
