// Whatever arrives, requests, tokens and blocks balance: random streams on random deployments, seeds printed.
#include <cmath>
#include <random>

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "reference/registry.hpp"
#include "simulator/serving/serving.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

struct Draw {
  std::mt19937 random;
  int below(int n) { return static_cast<int>(random() % static_cast<std::uint32_t>(n)); }
  /// Small values and large ones alike.
  int spread(int most) { return 1 + below(1 + below(most)); }
};

Stream random_stream(Draw& draw) {
  Stream s;
  const int n = 1 + draw.below(300), prefixes = 1 + draw.below(6);
  double clock = 0;
  if (draw.below(3) == 0) s.users = draw.spread(60);
  for (int i = 0; i < n; ++i) {
    if (draw.below(4) != 0) clock += 0.001 * draw.spread(2000);
    Request r{.arrive_s = clock, .prompt = draw.spread(6000), .output = draw.spread(600)};
    r.first_segment = static_cast<std::uint32_t>(s.segments.size());
    if (draw.below(2) == 0) {  // chains as a trie of hashed blocks has them
      const auto chain = static_cast<std::uint64_t>(1 + draw.below(prefixes));
      const int blocks = draw.below(1 + r.prompt / 64);
      for (int b = 0; b < blocks; ++b) s.segments.push_back({chain * 1000 + static_cast<std::uint64_t>(b), 64});
    }
    r.segments = static_cast<std::uint32_t>(s.segments.size()) - r.first_segment;
    s.requests.push_back(r);
  }
  return s;
}

void check_balance(const ServingSetup& setup, const Stream& stream) {
  const ServingReport r = serve(setup, stream);
  CHECK(r.requests == static_cast<std::int64_t>(stream.requests.size()));
  CHECK(r.completed + r.refused == r.requests);
  CHECK(r.blocks_returned);
  CHECK(r.most_blocks_used <= r.pool_blocks);
  CHECK(r.counts.preemptions == r.preemptions);
  std::int64_t output = 0, prompt = 0;
  for (std::size_t i = 0; i < stream.requests.size(); ++i) {
    const Progress& p = r.progress[i];
    const Request& q = stream.requests[i];
    if (p.state == Progress::State::refused) continue;
    REQUIRE(p.state == Progress::State::done);
    output += q.output;
    prompt += q.prompt;
    CHECK(p.emitted == q.output);
    CHECK(p.arrive_s <= p.scheduled_s);
    CHECK(p.scheduled_s < p.first_token_s);
    CHECK(p.first_token_s <= p.last_token_s);
    CHECK((q.output == 1) == (p.first_token_s == p.last_token_s));
    CHECK(p.hit_tokens < q.prompt);
  }
  // Every token is emitted once; every prompt token is found or processed, again after each preemption.
  CHECK(r.counts.emitted_tokens == output);
  CHECK(r.counts.asked_tokens == prompt);
  if (r.preemptions == 0) {
    CHECK(r.counts.prefilled_tokens == prompt - r.counts.hit_tokens);
  } else {
    CHECK(r.counts.prefilled_tokens >= prompt - r.counts.hit_tokens - r.counts.hit_tokens);
  }
  CHECK(std::isfinite(r.duration_s));
  CHECK(r.busy_share <= 1.0 + 1e-9);
  CHECK(r.ttft.p50 <= r.ttft.p90);
  CHECK(r.ttft.p90 <= r.ttft.p99);
  CHECK(r.ttft.p99 <= r.ttft.most);
}

}  // namespace

TEST_CASE("requests, tokens and blocks balance under random streams", "[property]") {
  const char* gpus[] = {"rtx-4090", "h100-sxm", "a100-sxm-40gb"};
  const char* recipes[] = {"full", "fp8_kv", "kivi:bits=2", "snapkv", "streaming_llm", "h2o"};
  int preempted = 0, hits = 0;
  for (unsigned seed = 0; seed < 150; ++seed) {
    CAPTURE(seed);
    Draw draw{std::mt19937(seed)};
    ServingSetup setup;
    setup.deployment = {.model = &models::find_model("llama-3.1-8b"), .gpu = find_gpu(gpus[draw.below(3)]), .recipe = Recipe::parse(recipes[draw.below(6)])};
    // Shares of memory just above the weights make the pool tight.
    const double least = 15.0 * 0x1p30 + 2.6e9;
    setup.deployment.gpu_memory_utilization = std::min(1.0, least / *setup.deployment.gpu.memory_bytes.value + 0.001 * draw.spread(40));
    setup.deployment.chunk = Tokens(256 << draw.below(5));
    setup.deployment.engine = &find_engine(draw.below(2) == 0 ? "vllm" : "sglang");
    setup.deployment.dp = draw.below(3) == 0 ? 2 : 1;
    setup.sequences = draw.spread(256);
    if (setup.deployment.dp == 1 && draw.below(4) == 0) {
      setup.disaggregated = true;
      setup.prefill_replicas = 1 + draw.below(2), setup.decode_replicas = 1 + draw.below(2);
    }
    const Stream stream = random_stream(draw);
    CAPTURE(setup.deployment.recipe.canonical(), setup.deployment.gpu.slug, setup.disaggregated, stream.users);
    try {
      check_balance(setup, stream);
      const ServingReport r = serve(setup, stream);
      preempted += r.preemptions > 0 ? 1 : 0;
      hits += r.counts.hit_tokens > 0 ? 1 : 0;
    } catch (const InvalidArgument& e) {
      CHECK(std::string(e.what()).find("no cache fits") == 0);
    }
  }
  CHECK(preempted >= 10);
  CHECK(hits >= 10);
}

TEST_CASE("methods whose record says no prefix cache find nothing, the others do", "[property]") {
  const Stream stream = make_stream({.requests = 60, .prompt = Tokens(4096), .output = Tokens(32), .prefix_hit = 0.5, .users = 4});
  int works = 0, refuses = 0;
  for (const Method* m : all_methods()) {
    ServingSetup setup;
    setup.deployment = {.model = &models::find_model("llama-3.1-8b"), .gpu = find_gpu("h100-sxm"), .recipe = Recipe::parse("full")};
    try {
      setup.deployment.recipe = Recipe::parse(m->slug);
      if (why_not(setup.deployment)) continue;
    } catch (const Error&) {
      continue;
    }
    CAPTURE(m->slug);
    const ServingReport r = serve(setup, stream);
    CHECK(r.completed == 60);
    CHECK(r.blocks_returned);
    if (m->serving.prefix_cache.works == Works::no) {
      CHECK(r.prefix_hit_rate == 0);
      ++refuses;
    } else {
      CHECK(r.prefix_hit_rate > 0.2);
      ++works;
    }
  }
  CHECK(works >= 2);
  CHECK(refuses >= 1);
}
