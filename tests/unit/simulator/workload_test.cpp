#include "core/errors.hpp"
#include "models/registry.hpp"
#include "simulator/evaluator.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

Evaluator llama(const char* gpu = "h100", const char* recipe = "full") {
  return Evaluator({.model = &models::find_model("llama-3.1-8b"), .gpu = find_gpu(gpu), .recipe = Recipe::parse(recipe)});
}

}  // namespace

TEST_CASE("c requests in flight finish in c prefills and output steps", "[unit]") {
  const Evaluator e = llama();
  const WorkloadFigures f = e.workload({.prompt = Tokens(4096), .output = Tokens(256), .concurrency = 8});
  const double prefill = e.prefill_s(Tokens(4096), 1), step = e.step(Tokens(4096 + 128), 8).step_s;
  CHECK(f.feasible);
  CHECK(f.concurrency == 8);
  CHECK(f.requests_per_s == Approx(8 / (8 * prefill + 256 * step)));
  CHECK(f.tokens_per_s == Approx(256 * f.requests_per_s));
  CHECK(f.tpot_s == Approx(step + 7 * prefill / 256));
  CHECK(f.ttft_s > prefill);
  CHECK(f.low_requests_per_s < f.requests_per_s);
  CHECK(f.high_requests_per_s > f.requests_per_s);
  CHECK(f.usd_per_mtok == Approx(2.5 / 3600 / f.tokens_per_s * 1e6));
  CHECK(f.energy_j_per_token > 0);
}

TEST_CASE("without rate or concurrency the search ends at memory or at the SLO", "[unit]") {
  const Evaluator e = llama();
  const WorkloadFigures free = e.workload({.prompt = Tokens(8192), .output = Tokens(1024)});
  CHECK(free.concurrency <= e.memory(Tokens(8192), Tokens(9216), 1).max_batch);
  CHECK(free.bound == Bound::memory_capacity);
  const WorkloadFigures tight = e.workload({.prompt = Tokens(8192), .output = Tokens(1024), .slo = {.tpot_s = 0.012}});
  CHECK(tight.feasible);
  CHECK(tight.concurrency < free.concurrency);
  CHECK(tight.tpot_s <= 0.012);
  CHECK(e.workload({.prompt = Tokens(8192), .output = Tokens(1024), .concurrency = static_cast<int>(tight.concurrency) + 1}).tpot_s > 0.012);
}

TEST_CASE("what cannot be served says why", "[unit]") {
  const WorkloadFigures slow = llama().workload({.prompt = Tokens(8192), .output = Tokens(64), .slo = {.tpot_s = 0.001}});
  CHECK_FALSE(slow.feasible);
  CHECK(slow.why_not.find("tpot is ") == 0);
  CHECK(slow.why_not.find("with 1 request in flight, the SLO is 1.0 ms") != std::string::npos);
  const WorkloadFigures late = llama().workload({.prompt = Tokens(131072), .output = Tokens(64), .slo = {.ttft_s = 0.5}});
  CHECK_FALSE(late.feasible);
  CHECK(late.why_not.find("ttft is ") == 0);
  const WorkloadFigures full = llama("rtx-4090").workload({.prompt = Tokens(131072), .output = Tokens(64)});
  CHECK_FALSE(full.feasible);
  CHECK(full.requests_per_s == 0);
  CHECK(full.bound == Bound::memory_capacity);
  CHECK(full.why_not.find("the cache of 1 sequence of 131136 tokens") == 0);
  const WorkloadFigures much = llama().workload({.prompt = Tokens(8192), .output = Tokens(64), .rate = 1000.0});
  CHECK_FALSE(much.feasible);
  CHECK(much.why_not.find("rate is 1e+03 requests/s, H100-SXM-80GB serves at most ") == 0);
}

TEST_CASE("an offered rate takes the fewest requests in flight that serve it", "[unit]") {
  const Evaluator e = llama();
  const WorkloadFigures f = e.workload({.prompt = Tokens(4096), .output = Tokens(256), .rate = 2.0});
  CHECK(f.feasible);
  CHECK(f.requests_per_s == 2.0);
  CHECK(e.workload({.prompt = Tokens(4096), .output = Tokens(256), .concurrency = static_cast<int>(f.concurrency)}).requests_per_s >= 2.0);
  if (f.concurrency > 1)
    CHECK(e.workload({.prompt = Tokens(4096), .output = Tokens(256), .concurrency = static_cast<int>(f.concurrency) - 1}).requests_per_s < 2.0);
}

TEST_CASE("requests beyond memory wait for their first token", "[unit]") {
  const Evaluator e = llama("rtx-4090");
  const WorkloadFigures one = e.workload({.prompt = Tokens(32768), .output = Tokens(512), .concurrency = 1});
  const WorkloadFigures four = e.workload({.prompt = Tokens(32768), .output = Tokens(512), .concurrency = 4});
  CHECK(four.concurrency == 1);
  CHECK(four.requests_per_s == one.requests_per_s);
  CHECK(four.ttft_s == Approx(one.ttft_s + 3 / one.requests_per_s));
}

TEST_CASE("prefix hits save prefill in whole pages; turns carry their history", "[unit]") {
  const Evaluator e = llama();
  const auto prefill = [&](const Workload& w) { return e.workload(w).prefill_s; };
  const double none = prefill({.prompt = Tokens(8192), .output = Tokens(64)});
  CHECK(none == e.prefill_s(Tokens(8192), 1));
  const double half = prefill({.prompt = Tokens(8192), .output = Tokens(64), .prefix_hit = 0.5});
  CHECK(half == Approx(none - e.prefill_s(Tokens(4096), 1)));
  CHECK(prefill({.prompt = Tokens(15), .output = Tokens(64), .prefix_hit = 0.9}) == e.prefill_s(Tokens(15), 1));
  CHECK(prefill({.prompt = Tokens(8192), .output = Tokens(64), .prefix_hit = 1.0}) > 0);
  // The middle of three turns sees one turn before it.
  const double third = prefill({.prompt = Tokens(1024), .output = Tokens(1024), .turns = 3});
  CHECK(third == Approx(std::max(e.prefill_s(Tokens(3072), 1) - e.prefill_s(Tokens(2048), 1), e.prefill_s(Tokens(1024), 1))));
}

TEST_CASE("workloads that cannot be are refused", "[unit]") {
  const Evaluator e = llama();
  CHECK_THROWS_WITH(e.workload({.prompt = Tokens(0), .output = Tokens(1)}), "context is 0, must be from 1 to 1073741824 tokens");
  CHECK_THROWS_WITH(e.workload({.prompt = Tokens(1), .output = Tokens(0)}), "output is 0, must be from 1 to 1G tokens");
  CHECK_THROWS_WITH(e.workload({.prompt = Tokens(1), .output = Tokens(1), .prefix_hit = 1.5}), "prefix_hit is 1.5, must be from 0 to 1");
  CHECK_THROWS_WITH(e.workload({.prompt = Tokens(1), .output = Tokens(1), .rate = 1.0, .concurrency = 1}),
                    "rate and concurrency are both given; a workload takes one of them");
  CHECK_THROWS_WITH(e.workload({.prompt = Tokens(1), .output = Tokens(1), .concurrency = 0}), "concurrency is 0, must be at least 1");
  CHECK_THROWS_WITH(e.workload({.prompt = Tokens(1), .output = Tokens(1), .slo = {.tpot_s = 0.0}}), "slo tpot is 0 s, must be positive");
}

TEST_CASE("methods that compress the prompt alone keep and read what was generated", "[unit]") {
  const Evaluator e = llama("h100", "snapkv:budget=1024");
  // In the middle of 16,384 generated tokens a step reads 1,024 rows of the prompt and 8,192 others, as without compression.
  const Tokens middle(1024 + 8192);
  const WorkloadFigures f = e.workload({.prompt = Tokens(1024), .output = Tokens(16384), .concurrency = 4});
  CHECK(f.size_factor == Approx(1).epsilon(0.001));
  CHECK(f.step_s == e.step(Tokens(1024), middle, 4).step_s);
  const double rows = 4 * 9216.0 * 131072, queries = 4 * 32 * 32 * 256.0;  // 131,072 bytes a token; spans re-read queries on chip
  CHECK(e.step(Tokens(1024), middle, 4).cache_read_bytes == rows + queries);
  CHECK(f.step_s == Approx(llama().workload({.prompt = Tokens(1024), .output = Tokens(16384), .concurrency = 4}).step_s).epsilon(0.001));
  // The microscope takes the whole context for the prompt.
  CHECK(e.step(middle, 4).cache_read_bytes == 4 * 1024.0 * 131072 + queries);
  CHECK(e.size_factor(middle) == Approx(9).epsilon(0.01));
  CHECK_THROWS_WITH(e.step(Tokens(9), Tokens(8), 1), "prompt is 9, must be from 1 to context (8)");
}
