// SnapKV against kvpress (mean over window and group, pooling first), the official code (a choice for each query head) and
// KVCache-Factory (group first, then pooling).
#include <algorithm>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/primitives/selection.hpp"
#include "reference/primitives/token_cache.hpp"
#include "reference/primitives/window_scores.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

struct Setting {
  std::int64_t window = 0, budget = 0;
  ScoreReduce reduce;
  Granularity granularity = Granularity::kv_head;
  std::string text() const {
    constexpr const char* kGroup[] = {"mean", "max", "sum"};
    return cat("snapkv:budget=", budget, ",observation_window=", window, ",kernel=", reduce.kernel, ",pooling=",
               reduce.pooling == Pooling::max ? "max" : "avg", ",group_reduce=", kGroup[static_cast<int>(reduce.group)],
               ",window_reduce=", reduce.window == WindowReduce::sum ? "sum" : "mean", ",pool_first=",
               reduce.pool_first ? "true" : "false", ",granularity=", kGranularityNames[static_cast<std::size_t>(granularity)]);
  }
};

Setting setting_of(const GoldenCase& golden) {
  Setting s;
  s.window = golden.parameter<std::int64_t>("window_size");
  s.reduce.kernel = golden.parameter<int>("kernel_size");
  if (golden.parameters().contains("compression_ratio")) {  // kvpress
    s.budget = golden.parameter<std::int64_t>("n_kept");
    s.reduce.window = WindowReduce::mean;
    s.reduce.pooling = Pooling::avg;
    s.reduce.pool_first = true;
    return s;
  }
  s.budget = golden.parameter<std::int64_t>("max_capacity_prompt");
  s.reduce.pooling = golden.parameter<std::string>("pooling") == "maxpool" ? Pooling::max : Pooling::avg;
  if (golden.parameter<std::string>("granularity").starts_with("query")) s.granularity = Granularity::query_head;
  if (golden.parameters().contains("gqa_score_agg"))
    s.reduce.group = golden.parameter<std::string>("gqa_score_agg") == "max" ? GroupReduce::max : GroupReduce::mean;
  return s;
}

/// Queries as they enter attention: kvpress cases give them before RoPE.
Traced traced_of(const GoldenCase& golden) {
  if (golden.has("q")) return Traced(golden);
  const NamedTensor pre = golden.floats("q_pre"), keys = golden.floats("k");
  Array q({pre.dims[1], pre.dims[2], pre.dims[3]});
  q.values() = pre.values;
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < pre.dims[2]; ++t) positions.push_back(t);
  RopeTable({.base = golden.parameter<double>("rope_base"), .rotary_dim = static_cast<int>(pre.dims[3])}).apply(q.view(), positions);
  return Traced(q.view(), view_of(keys, {keys.dims[1], keys.dims[2], keys.dims[3]}));
}

/// Scores of the tokens before the window, for every row owner.
std::vector<std::vector<float>> scores_of(const Traced& run, const Setting& s) {
  const LayerClass c = stored_shape(run.shape(), s.granularity).classes.front();
  std::vector<std::vector<float>> scores;
  for (int h = 0; h < c.kv_heads; ++h) {
    const auto masses = window_masses(c, h, run.q().slice(1, run.tokens() - s.window, s.window),
                                      run.k()[h * run.k().dim(0) / c.kv_heads]);
    scores.push_back(reduce_masses(masses, s.window, s.reduce));
  }
  return scores;
}

std::vector<float> flat(const std::vector<std::vector<float>>& rows) {
  std::vector<float> all;
  for (const auto& r : rows) all.insert(all.end(), r.begin(), r.end());
  return all;
}

}  // namespace

TEST_CASE("SnapKV scores tokens as the released codes do", "[golden]") {
  for (const GoldenCase& golden : golden_cases("snapkv")) {
    CAPTURE(golden.name());
    if (!golden.has("scores")) continue;  // shorter than the budget: nothing was scored
    const Setting s = setting_of(golden);
    const Traced run = traced_of(golden);
    auto scores = scores_of(run, s);
    if (golden.has("pooled")) {
      ScoreReduce one = s.reduce;
      std::vector<float> pooled;
      for (int h = 0; h < run.shape().classes.front().kv_heads; ++h)
        for (auto& mass : window_masses(run.shape().classes.front(), h, run.q().slice(1, run.tokens() - s.window, s.window), run.k()[h])) {
          const auto head = reduce_masses({mass}, s.window, one);
          pooled.insert(pooled.end(), head.begin(), head.end());
        }
      check_bound(golden, "pooled", pooled);
      // kvpress forces the window in by a score above all others.
      const auto all = flat(scores);
      const float forced = *std::ranges::max_element(all) + 1.0F;
      for (auto& head : scores) head.resize(head.size() + static_cast<std::size_t>(s.window), forced);
    }
    check_bound(golden, "scores", flat(scores));
  }
}

TEST_CASE("SnapKV keeps the tokens that the released codes keep", "[golden]") {
  int compared = 0;
  for (const GoldenCase& golden : golden_cases("snapkv")) {
    CAPTURE(golden.name());
    const Setting s = setting_of(golden);
    const Traced run = traced_of(golden);
    if (s.budget < s.window) {  // kvpress then picks arbitrarily among window tokens of one forced score
      REQUIRE_THROWS_WITH(run.open(s.text()), contains_text("must be at least observation_window"));
      continue;
    }
    ++compared;
    const auto cache = run.open(s.text());
    run.run(*cache, 0, run.tokens());
    cache->end_prefill();
    const auto kept = tokens_held(*cache);
    if (golden.selection_margin().value_or(1.0) > 0) {
      check_set(golden, "kept", kept);
      check_exact(golden, "kept_sorted", kept);
      continue;
    }
    // Exact ties, where they choose arbitrarily: the scores of what stays are the same.
    const auto scores = scores_of(run, s);
    const auto theirs = golden.integers("kept_sorted").values;
    const std::size_t each = theirs.size() / scores.size();
    for (std::size_t h = 0; h < scores.size(); ++h) {
      std::vector<float> a, b;
      for (std::size_t i = 0; i < each; ++i) {
        const auto ours_at = static_cast<std::size_t>(kept[h * each + i]), theirs_at = static_cast<std::size_t>(theirs[h * each + i]);
        if (ours_at < scores[h].size()) a.push_back(scores[h][ours_at]);
        if (theirs_at < scores[h].size()) b.push_back(scores[h][theirs_at]);
      }
      std::ranges::sort(a);
      std::ranges::sort(b);
      REQUIRE(a.size() == b.size());
      for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= 2e-6F + 2e-5F * b[i]);
    }
  }
  REQUIRE(compared >= 3);
}
