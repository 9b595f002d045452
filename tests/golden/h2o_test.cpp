// H2O against the official code with real drops, its mask simulation, its FlexGen system (prompt) and KVCache-Factory; D2O, which merges what H2O
// drops, against its official code.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

void check_if_held(const GoldenCase& golden, const std::string& array, const std::vector<std::int64_t>& ours) {
  if (golden.has(array)) check_exact(golden, array, ours);
}

/// The official code's own steps: the prompt is step 0, then one token a step.
void compare_real_drop(const GoldenCase& golden) {
  const Traced run(golden);
  const auto tokens = golden.parameter<std::int64_t>("tokens");
  const auto cache = run.open(cat("h2o:heavy_hitters=", golden.parameter<std::int64_t>("hh_size"), ",recent_window=",
                                  golden.parameter<std::int64_t>("recent_size")));
  run.run(*cache, 0, tokens);
  cache->end_prefill();
  for (std::int64_t step = 0; step <= golden.parameter<std::int64_t>("steps"); ++step) {
    if (step > 0) run.run(*cache, tokens + step - 1, 1);
    check_if_held(golden, cat("kept_step", step), tokens_held(*cache));
    if (golden.has(cat("score_step", step))) check_bound(golden, cat("score_step", step), masses_held(*cache));
  }
}

/// The simulation masks what the real drop forgets. Its mask for the next step has one more column, the coming token, which
/// takes a place in its recent window; the token that leaves the window at that moment is not yet a candidate there. So it
/// equals the real drop with a window shorter by one wherever that token is no heavy hitter; it always is one when the text
/// just fills the budget, where the comparison ends.
void compare_simulation(const GoldenCase& golden) {
  const Traced run(golden);
  const auto tokens = golden.parameter<std::int64_t>("tokens");
  const auto heads = golden.parameter<std::int64_t>("heads");
  const auto budget = golden.parameter<std::int64_t>("heavy_budget") + golden.parameter<std::int64_t>("recent_budget");
  const auto cache = run.open(cat("h2o:heavy_hitters=", golden.parameter<std::int64_t>("heavy_budget"), ",recent_window=",
                                  golden.parameter<std::int64_t>("recent_budget") - 1));
  run.run(*cache, 0, tokens);
  cache->end_prefill();
  for (std::int64_t step = 0; step <= golden.parameter<std::int64_t>("steps"); ++step) {
    if (step > 0) run.run(*cache, tokens + step - 1, 1);
    if (tokens + step == budget) return;
    const std::int64_t columns = tokens + step + 1;
    std::vector<std::int64_t> mask(static_cast<std::size_t>(heads * columns), 0);
    for (std::int64_t h = 0; h < heads; ++h) {
      for (const std::int64_t t : tokens_held(*cache, static_cast<int>(h))) mask[static_cast<std::size_t>(h * columns + t)] = 1;
      mask[static_cast<std::size_t>((h + 1) * columns - 1)] = 1;
    }
    check_if_held(golden, cat("mask_step", step), mask);
  }
}

/// Heavy hitters in the order of their scores, then the newest hh - 1 tokens. Later steps reorder slots in a way of their own.
void compare_flexgen_prompt(const GoldenCase& golden) {
  const Traced run(golden);
  const auto tokens = golden.parameter<std::int64_t>("tokens"), hitters = golden.parameter<std::int64_t>("hh_k");
  const auto cache = run.open(cat("h2o:heavy_hitters=", hitters, ",recent_window=", hitters - 1));
  run.run(*cache, 0, tokens);
  cache->end_prefill();
  std::vector<std::int64_t> kept = tokens_held(*cache);
  std::vector<float> mass = masses_held(*cache);
  const std::int64_t each = 2 * hitters - 1;
  std::vector<std::int64_t> tokens_by_score;
  std::vector<float> mass_by_score;
  for (std::int64_t first = 0; first < static_cast<std::int64_t>(kept.size()); first += each) {
    std::vector<std::int64_t> slots;
    for (std::int64_t s = 0; s < each; ++s) slots.push_back(first + s);
    std::sort(slots.begin(), slots.begin() + hitters, [&](std::int64_t a, std::int64_t b) {
      return mass[static_cast<std::size_t>(a)] > mass[static_cast<std::size_t>(b)];
    });
    for (const std::int64_t s : slots) {
      tokens_by_score.push_back(kept[static_cast<std::size_t>(s)]);
      mass_by_score.push_back(mass[static_cast<std::size_t>(s)]);
    }
  }
  check_exact(golden, "kept_prefill", tokens_by_score);
  check_bound(golden, "acc_prefill", mass_by_score);
}

/// Once after the prompt, capacity = heavy hitters + window; the score is the mean over a group, ours the sum.
void compare_prompt_only(const GoldenCase& golden) {
  const Traced run(golden);
  const auto window = golden.parameter<std::int64_t>("window_size"), budget = golden.parameter<std::int64_t>("max_capacity_prompt");
  const bool query_heads = golden.parameter<std::string>("granularity").starts_with("query");
  const auto cache = run.open(cat("h2o:trigger=prompt,heavy_hitters=", budget - window, ",recent_window=", window,
                                  query_heads ? ",granularity=query_head" : ""));
  run.run(*cache, 0, run.tokens());
  if (golden.has("scores")) {
    const auto mass = masses_held(*cache);
    const LayerClass& c = run.shape().classes.front();
    const auto each = static_cast<std::size_t>(run.tokens());
    const float group = query_heads ? 1.0F : static_cast<float>(c.q_per_kv());
    std::vector<float> scores;
    for (std::size_t first = 0; first < mass.size(); first += each)
      for (std::size_t t = 0; t + static_cast<std::size_t>(window) < each; ++t) scores.push_back(mass[first + t] / group);
    check_bound(golden, "scores", scores);
  }
  cache->end_prefill();
  check_set(golden, "kept", tokens_held(*cache));
  check_exact(golden, "kept_sorted", tokens_held(*cache));
}

}  // namespace

TEST_CASE("H2O holds the tokens and scores of the released codes, step by step", "[golden]") {
  for (const GoldenCase& golden : golden_cases("h2o")) {
    CAPTURE(golden.name());
    if (golden.parameters().contains("max_capacity_prompt")) {
      compare_prompt_only(golden);
    } else if (golden.parameters().contains("hh_size")) {
      compare_real_drop(golden);
    } else if (golden.parameters().contains("hh_k")) {
      compare_flexgen_prompt(golden);
    } else {
      compare_simulation(golden);
    }
  }
}

namespace {

std::vector<float> merged_rows_of(const KvCache& cache, const std::string& name, int heads) {
  std::vector<float> out;
  const auto buffers = cache.buffers();
  for (int h = 0; h < heads; ++h) {
    const auto& bytes = find_buffer(buffers, cat("layer0/", name, "/head", h)).bytes;
    const std::size_t at = out.size();
    out.resize(at + bytes.size() / sizeof(float));
    std::memcpy(out.data() + at, bytes.data(), bytes.size());
  }
  return out;
}

float gate_of(const KvCache& cache) {
  float threshold = 0;
  const auto buffers = cache.buffers();
  std::memcpy(&threshold, find_buffer(buffers, "layer0/limit").bytes.data() + 8, sizeof threshold);
  return threshold;
}

}  // namespace

TEST_CASE("D2O keeps, merges and moves its threshold as the official code does", "[golden][merging]") {
  for (const GoldenCase& g : golden_cases("d2o")) {
    CAPTURE(g.name());
    const auto tokens = g.parameter<std::int64_t>("tokens");
    const int heads = g.parameter<int>("heads");
    const Traced names(g);  // queries and keys; the values that are merged are those of the case
    const MethodChoice m = parse_choice(cat("d2o:allocation=uniform,edge_layers=false,heavy_hitters=", g.parameter<double>("layer_hh_ratio"), ",recent=",
                                            g.parameter<double>("layer_recent_ratio"), ",alpha=", g.parameter<double>("alpha"), ",beta=", g.parameter<double>("beta")));
    const auto cache = m.method->open(m.row, names.shape(), {});
    const NamedTensor v = g.floats("v");
    const View<const float> values = view_of(v, {heads, v.dims[2], v.dims[3]});
    const auto run = [&](std::int64_t first, std::int64_t n) {
      Array out({heads, n, v.dims[3]});
      std::vector<std::int64_t> positions;
      for (std::int64_t i = 0; i < n; ++i) positions.push_back(first + i);
      cache->forward(0, {.q = names.q().slice(1, first, n), .k = names.k().slice(1, first, n), .v = values.slice(1, first, n), .positions = {positions.data(), {n}}}, out.view());
    };
    run(0, tokens);
    cache->end_prefill();
    for (std::int64_t step = 1; step <= g.parameter<std::int64_t>("steps"); ++step) {
      run(tokens + step - 1, 1);
      if (g.has(cat("threshold_step", step))) check_bound(g, cat("threshold_step", step), std::vector<float>{gate_of(*cache)});
      if (g.has(cat("keys_step", step))) check_bound(g, cat("keys_step", step), merged_rows_of(*cache, "k_rows", heads));
      if (g.has(cat("values_step", step))) check_bound(g, cat("values_step", step), merged_rows_of(*cache, "v_rows", heads));
    }
    const NamedTensor scores = g.floats("final_score");  // infinite at the sinks
    const std::vector<float> ours = masses_held(*cache);
    REQUIRE(ours.size() == scores.values.size());
    for (std::size_t i = 0; i < ours.size(); ++i)
      if (std::isfinite(scores.values[i])) CHECK(static_cast<double>(ours[i]) == Approx(static_cast<double>(scores.values[i])).epsilon(1e-5));
  }
}
