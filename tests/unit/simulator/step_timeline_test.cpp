#include "simulator/step_timeline.hpp"

#include <map>
#include <nlohmann/json.hpp>

#include "models/registry.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

TEST_CASE("a step's timeline adds up to the step and has every launch once", "[unit]") {
  for (const char* model : {"llama-3.1-8b", "deepseek-v3", "gpt-oss-20b", "gemma-3-270m"})
    for (const char* recipe : {"full", "quest", "kivi:bits=2"}) {
      Deployment d{.model = &models::find_model(model), .gpu = find_gpu("h100-sxm"), .recipe = Recipe::parse(recipe)};
      if (why_not(d)) continue;
      CAPTURE(model, recipe);
      const Evaluator e(d);
      const StepExplained step = e.explain_step(Tokens(8192), 4);
      const auto events = step_timeline(e, Tokens(8192), Tokens(8192), 4);
      double seconds = 0;
      std::map<std::string, double> by_name;
      int layer = 0;
      for (const TimelineEvent& event : events) {
        REQUIRE(event.start_s == Approx(seconds).margin(1e-12));
        REQUIRE((event.layer == -1 || event.layer >= layer));
        layer = event.layer == -1 ? 1 << 20 : event.layer;
        seconds += event.seconds;
        by_name[event.name] += event.seconds;
      }
      CHECK(seconds == Approx(step.figures.step_s).epsilon(1e-9));
      for (const StepPart& p : step.parts) {
        double same = 0;
        for (const StepPart& o : step.parts) same += o.part == p.part ? o.seconds : 0;
        CAPTURE(p.part);
        CHECK(by_name[p.part] == Approx(same).epsilon(1e-9));
      }
    }
}

TEST_CASE("in a layer projections come first, then the cache, then the rest", "[unit]") {
  const Evaluator e({.model = &models::find_model("llama-3.1-8b"), .gpu = find_gpu("h100-sxm")});
  std::vector<std::string> names;
  for (const TimelineEvent& event : step_timeline(e, Tokens(8192), Tokens(8192), 1))
    if (event.layer == 5) names.push_back(event.name);
  REQUIRE(names == std::vector<std::string>{"qkv_proj", "append", "decode_attention", "span_merge", "o_proj", "gate_up_proj", "down_proj", "elementwise"});
}

TEST_CASE("the timeline's JSON can be read and names what limits a kernel", "[unit]") {
  const Evaluator e({.model = &models::find_model("llama-3.1-8b"), .gpu = find_gpu("h100-sxm"), .recipe = Recipe::parse("kivi:bits=2")});
  const auto json = nlohmann::json::parse(timeline_json(step_timeline(e, Tokens(8192), Tokens(8192), 1), "a step"));
  int load = 0, unpack = 0;
  for (const auto& event : json["traceEvents"]) {
    if (event["ph"] != "X") continue;
    load += event["tid"] == 3 ? 1 : 0;
    unpack += event["tid"] == 4 ? 1 : 0;
  }
  REQUIRE(load >= 32);
  REQUIRE(unpack >= 32);
}
