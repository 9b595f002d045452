// SpecKV and SpecPC against the official code: scores of prompt tokens by lookahead queries and by a draft's attention, and the choice.
#include <algorithm>

#include "reference/primitives/prompt_choice.hpp"
#include "reference/primitives/window_scores.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("SpecKV scores tokens as the official code does", "[golden]") {
  for (const GoldenCase& g : golden_cases("speckv")) {
    CAPTURE(g.name());
    const Traced run(g);
    const auto window = g.parameter<std::int64_t>("window_size");
    const bool largest = g.parameter<std::string>("reduction_type") == "max";
    const ScoreReduce how{.window = largest ? WindowReduce::max : WindowReduce::mean, .group = largest ? GroupReduce::max : GroupReduce::mean,
                          .pooling = g.parameter<std::string>("pool_type") == "max" ? Pooling::max : Pooling::avg, .kernel = g.parameter<int>("kernel_size")};
    std::vector<float> scores;
    std::vector<std::int64_t> best;
    for (std::int64_t h = 0; h < run.k().dim(0); ++h) {
      const auto masses = window_masses(run.shape().classes.front(), static_cast<int>(h), run.q().slice(1, run.tokens() - window, window), run.k()[h], how.window);
      const auto head = reduce_masses(masses, window, how);
      scores.insert(scores.end(), head.begin(), head.end());
      const auto top = ranked(head, g.integers("indices").dims.back());
      best.insert(best.end(), top.begin(), top.end());
    }
    check_bound(g, "scores", scores);
    if (g.selection_margin().value_or(1.0) > 0) check_set(g, "indices", best);
  }
}

TEST_CASE("SpecPC reduces a draft's attention and chooses tokens as the official code does", "[golden]") {
  for (const GoldenCase& g : golden_cases("specpc")) {
    CAPTURE(g.name());
    const auto whole = [&](const char* name) { return g.parameter<std::int64_t>(name); };
    const auto order = g.integers("neighbour_order").values;
    PromptChoice how{.budget = whole("max_capacity_prompt"), .window = whole("window_size"), .lookahead = whole("lookahead"),
                     .kernel = static_cast<int>(whole("kernel_size")), .largest = g.parameter<std::string>("reduction_type") == "max",
                     .neighbours = static_cast<int>(order.size()), .ramp = g.parameter<bool>("weighted_query"),
                     .first_layer = static_cast<int>(whole("starting_layer_index"))};
    const std::int64_t tokens = whole("tokens"), seen = tokens + how.lookahead, queries = how.window + how.lookahead;
    const std::int64_t q_heads = whole("q_heads"), kv_heads = whole("kv_heads"), dim = whole("head_dim");
    TensorMap file;
    for (int layer = how.first_layer; layer < whole("layers"); ++layer) {
      const NamedTensor q = g.floats(cat("q_layer", layer)), k = g.floats(cat("k_layer", layer));
      NamedTensor newest{.dims = {q_heads, queries, dim}, .values = {}};
      for (std::int64_t h = 0; h < q_heads; ++h)
        newest.values.insert(newest.values.end(), q.values.begin() + (h * seen + seen - queries) * dim, q.values.begin() + (h + 1) * seen * dim);
      file[cat("layer", layer, ".draft_queries")] = newest;
      file[cat("layer", layer, ".draft_keys")] = {.dims = {kv_heads, seen, dim}, .values = k.values};
    }
    std::vector<DraftRows> layers;
    for (int layer = how.first_layer; layer < whole("layers"); ++layer)
      layers.push_back({.q = view_of(file.at(cat("layer", layer, ".draft_queries")), {q_heads, queries, dim}), .k = view_of(file.at(cat("layer", layer, ".draft_keys")), {kv_heads, seen, dim})});
    const std::vector<float> attention = prompt_attention(layers, how), pooled = pool_zero_padded(attention, how.pooling, how.kernel);
    check_bound(g, "aggregated", attention);
    check_bound(g, "pooled", pooled);
    // Neighbours under one maximum tie, and the official code ranks them arbitrarily: which tokens rank is compared, then the choice from
    // its own ranks.
    if (g.selection_margin().value_or(0.0) > 0) check_set(g, "top_order", ranked(pooled, how.budget));
    check_exact(g, "selected", shown_tokens(g.integers("top_order").values, tokens, how));
    const ChosenPrompt ours = choose_prompt(file, "specpc", how);
    CHECK(static_cast<std::int64_t>(ours.shown.size()) == how.budget);
    CHECK(ours.shown == shown_tokens(ranked(pooled, how.budget), tokens, how));
  }
}
