#include "sweeps/spec.hpp"

#include <algorithm>

#include "reference/registry.hpp"
#include "sweeps/configuration.hpp"
#include "sweeps/settings.hpp"
#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;
using kvatlas::sweep::testing::sentence_of;
using kvatlas::sweep::testing::small_spec;

namespace {
std::string refusal(const std::string& text) {
  return sentence_of([&] { parse_spec(text, "s.json"); });
}
std::string with(const std::string& more) {
  return "{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"h100-sxm\"], \"methods\": [\"full\"], \"contexts\": [1024]" + more + "}";
}
}  // namespace

TEST_CASE("a spec names its axes", "[unit]") {
  const Spec s = parse_spec(small_spec(), "s.json");
  REQUIRE(s.models.size() == 1);
  REQUIRE(s.gpus.size() == 2);
  REQUIRE(s.recipes.size() == 4);
  REQUIRE(s.contexts == std::vector<Tokens>{1024_tok, 2048_tok, 4096_tok, 8192_tok, 16384_tok});
  REQUIRE(s.batches.list == std::vector<int>{1, 2, 4, 8});
  REQUIRE(s.weights == std::vector<sim::WeightFormat>{sim::WeightFormat::bf16});
  REQUIRE(s.engines == std::vector<const sim::Engine*>{&sim::default_engine()});
  REQUIRE(s.tp == std::vector<int>{1});
}

TEST_CASE("spelling does not change the hash of a spec, content does", "[unit]") {
  const Key a = parse_spec(with(", \"tp\": [1]"), "a").hash;
  REQUIRE(a == parse_spec("{ \"tp\":[1], \"contexts\" : [1024],\n\"methods\": [\"full\"], \"gpus\": [\"h100-sxm\"], \"models\": [\"llama-3.2-1b\"] }", "b").hash);
  REQUIRE_FALSE(a == parse_spec(with(", \"tp\": [2]"), "a").hash);
}

TEST_CASE("all stands for the methods that write from left to right, settings join them", "[unit]") {
  const Spec s = parse_spec("{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"h100-sxm\"], \"methods\": \"all\", \"settings\": [\"sinks=4:full;full\", \"full\"], \"contexts\": [1024]}", "s");
  const auto in_order = std::ranges::count_if(all_methods(), [](const Method* m) { return writes_in_order(*m); });
  REQUIRE(in_order < std::ssize(all_methods()));
  REQUIRE(std::ssize(s.recipes) == in_order + 1);
  REQUIRE(s.batches.to_memory_limit);
}

TEST_CASE("a workload's lists become one workload each", "[unit]") {
  const Spec s = parse_spec("{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"h100-sxm\"], \"methods\": [\"full\"], \"workloads\": {\"prompt\": \"1K|32K\", \"output\": 512, \"concurrency\": [1, 8], \"slo\": {\"tpot_ms\": 50}}}", "s");
  REQUIRE(s.workloads.size() == 4);
  REQUIRE(s.workloads[3].prompt == 32768_tok);
  REQUIRE(s.workloads[3].concurrency == 8);
  REQUIRE(s.workloads[3].slo.tpot_s == 0.05);
  REQUIRE_FALSE(s.workloads[3].slo.ttft_s);
  const sim::Slo slo = parse_slo("ttft_p99_ms=2000,tpot_ms=50");
  REQUIRE(slo.ttft_s == 2.0);
  REQUIRE(slo.tpot_s == 0.05);
}

TEST_CASE("each mistake in a spec gets a sentence with its place", "[unit]") {
  REQUIRE(refusal("{\"models\": [1e3087]}") == "s.json: holds a number beyond the range of doubles");
  REQUIRE(refusal("{\"models\": " + std::string(40, '[')) == "s.json: nests its values deeper than 32 levels");
  REQUIRE(refusal("{\"models\": [") == "s.json: not JSON: line 1, column 13: syntax error while parsing value - unexpected end of input; expected '[', '{', or a literal");
  REQUIRE(refusal("[]") == "s.json is [], must be an object");
  REQUIRE(refusal(with(", \"context\": [1]")) == "s.json: \"context\": unknown key; did you mean \"contexts\"?");
  REQUIRE(refusal("{\"models\": [\"llama-3.2-1b\"], \"models\": []}") == "s.json: key \"models\" occurs twice in one object");
  REQUIRE(refusal("{\"gpus\": [\"h100-sxm\"]}") == "s.json: \"models\" is missing, must be an array of model slugs or paths to a config.json");
  REQUIRE(refusal("{\"models\": []}") == "s.json: models is [], must be an array of model slugs or paths to a config.json");
  REQUIRE(refusal("{\"models\": [7]}") == "s.json: models[0] is 7, must be a text in quotes");
  REQUIRE(refusal("{\"models\": [\"lama-3.2-1b\"]}").find("s.json: models[0]: \"lama-3.2-1b\": unknown model; did you mean \"llama-3.2-1b\"?") == 0);
  REQUIRE(refusal("{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"h100-sxn\"]}").find("s.json: gpus[0]: \"h100-sxn\": unknown GPU") == 0);
  REQUIRE(refusal("{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"h100-sxm\"], \"methods\": [\"ful\"]}").find("s.json: methods[0]: \"ful\": unknown method") == 0);
  REQUIRE(refusal("{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"h100-sxm\"], \"methods\": [\"full:bits=2\"]}").find("s.json: methods[0]: full: \"bits\" is no parameter") == 0);
  REQUIRE(refusal(with(", \"settings\": [\"full\", \"recent=9..1:full;full\"]")).find("s.json: settings[1]: recent is \"9..1\", must be") == 0);
  REQUIRE(refusal("{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"h100-sxm\"], \"methods\": [\"full\"]}") == "s.json: has neither \"contexts\" nor \"workloads\", must have one of them");
  REQUIRE(refusal(with(", \"batches\": [0]")) == "s.json: batches[0] is 0, must be a whole number from 1, a size like \"32K\", a range like \"4K..128Kx2\" or \"4K..32K+4K\", or an array of these");
  REQUIRE(refusal(with(", \"batches\": {\"to_memory_limit\": false}")) == "s.json: batches is {\"to_memory_limit\":false}, must be an object with \"to_memory_limit\": true");
  REQUIRE(refusal(with(", \"batches\": {\"to_memory_limit\": true, \"per_doubling\": 0}")).find("s.json: batches.per_doubling is 0, must be") == 0);
  REQUIRE(refusal(with(", \"plans\": [\"idle\"]")) == "s.json: plans[0] is \"idle\", must be ideal or released");
  REQUIRE(refusal(with(", \"weights\": [\"bf17\"]")).find("s.json: weights[0]: ") == 0);
  REQUIRE(refusal(with(", \"engines\": [\"none-such\"]")).find("s.json: engines[0]: ") == 0);
  REQUIRE(refusal(with(", \"tp\": [4096]")) == "s.json: tp is [4096], must be from 1 to 1024");
  REQUIRE(refusal(with(", \"gpu_memory_utilization\": 2")) == "s.json: gpu_memory_utilization is 2, must be a number from 0.05 to 1");
  REQUIRE(refusal(with(", \"workloads\": [{\"prompt\": 10}]")) == "s.json: workloads[0]: \"output\" is missing, must be tokens");
  REQUIRE(refusal(with(", \"workloads\": [{\"prompt\": 10, \"output\": 1, \"rate\": 1, \"concurrency\": 2}]")) == "s.json: workloads[0]: has rate and concurrency, must have one of them or none");
  REQUIRE(refusal(with(", \"workloads\": [{\"prompt\": 10, \"output\": 1, \"slo\": \"tpt_ms=5\"}]")) == "s.json: workloads[0].slo: slo: \"tpt_ms\": unknown limit; did you mean \"tpot_ms\"?");
  REQUIRE(refusal(with(", \"workloads\": [{\"prompt\": 10, \"output\": 1, \"slo\": {\"tpot_ms\": -5}}]")).find("s.json: workloads[0].slo.tpot_ms is -5, must be a number from") == 0);
  REQUIRE(sentence_of([] { load_spec("/no/such/spec.json"); }) == "/no/such/spec.json: the spec cannot be read, must be a JSON file");
}

TEST_CASE("a batch series has its steps in every doubling and ends at the limit", "[unit]") {
  REQUIRE(batch_series(4, 0).empty());
  REQUIRE(batch_series(1, 9) == std::vector<int>{1, 2, 4, 8, 9});
  REQUIRE(batch_series(4, 17) == std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 17});
  REQUIRE(batch_series(2, 3) == std::vector<int>{1, 2, 3});
}

TEST_CASE("equal deployments have equal canonical text, and the text is stable", "[unit]") {
  const Spec s = parse_spec(small_spec(), "s.json");
  const WorkList w = work_list(s);
  REQUIRE(w.configurations.size() == 8);
  REQUIRE(w.groups.size() == 2);
  const Configuration& c = w.configurations.front();
  REQUIRE(c.text == "{\"chunk\":8192,\"dp\":1,\"engine\":\"" + std::string(sim::default_engine().slug) +
                        "\",\"ep\":1,\"gpu\":\"rtx-4090\",\"gpu_memory_utilization\":0.9,\"method\":\"full\",\"model\":\"llama-3.2-1b\",\"plan\":\"ideal\",\"pp\":1,\"tp\":1,\"weights\":\"bf16\"}");
  REQUIRE(c.text == canonical(deployment(s, c)));
  REQUIRE(c.key == murmur3(c.text));
}

TEST_CASE("shards share out the configurations without overlap, whatever the other axes hold", "[unit]") {
  const Spec s = parse_spec(small_spec(), "s.json"), more = parse_spec(small_spec("\"1K..64Kx2\"", "[1, 3]"), "s.json");
  std::size_t sum = 0;
  for (int i = 1; i <= 5; ++i) {
    const WorkList w = work_list(s, {i, 5}), w2 = work_list(more, {i, 5});
    REQUIRE(w.configurations.size() == w2.configurations.size());
    for (std::size_t k = 0; k < w.configurations.size(); ++k) REQUIRE(w.configurations[k].key == w2.configurations[k].key);
    sum += w.configurations.size();
  }
  REQUIRE(sum == 8);
  REQUIRE(parse_shard("2/5").index == 2);
  for (const char* bad : {"0/5", "6/5", "1", "a/b", "1/", "/2", "1/2x"})
    REQUIRE(sentence_of([&] { parse_shard(bad); }) == "shard is \"" + std::string(bad) + "\", must be I/N with 1 <= I <= N <= 100000");
}

TEST_CASE("an imported model is told from the shipped one by its content, not by its path", "[unit]") {
  const Spec s = parse_spec(small_spec(), "s.json");
  models::Model m = s.models[0];
  REQUIRE(model_identity(m) == "llama-3.2-1b");
  m.source = "/elsewhere/config.json";
  REQUIRE(model_identity(m) == "llama-3.2-1b");
  m.hidden += 64;
  REQUIRE(model_identity(m).find("llama-3.2-1b#") == 0);
}
