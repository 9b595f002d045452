// Eviction methods against kvpress, KVCache-Factory and the official codes: which tokens stay of a prompt.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>

#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/primitives/eviction/allocators.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// How a case is run with us; an empty setting means that it says something else than what is kept.
struct Ours {
  std::string setting;
  int layer = 0, layers = 1;
};
using SettingOf = std::function<Ours(const GoldenCase&)>;

bool has(const GoldenCase& g, const char* parameter) { return g.parameters().contains(parameter); }
std::int64_t whole(const GoldenCase& g, const char* parameter) { return g.parameter<std::int64_t>(parameter); }

/// kvpress cases carry the layer in their name: ..._layer3of6
void read_layer(const std::string& name, Ours& ours) {
  const auto at = name.find("_layer");
  const auto of = at == std::string::npos ? at : name.find("of", at);
  if (of == std::string::npos) return;
  ours.layer = std::stoi(name.substr(at + 6));
  ours.layers = std::stoi(name.substr(of + 2));
}

std::string pooling(const GoldenCase& g) { return g.parameter<std::string>("pooling") == "maxpool" ? "max" : "avg"; }

Ours key_scored(const GoldenCase& g) {
  if (has(g, "n_kept")) return {cat(g.slug(), ":budget=", whole(g, "n_kept"))};
  if (g.parameter<std::string>("granularity") != "kv_head") return {};
  return {cat(g.slug(), ":budget=", whole(g, "max_capacity_prompt"))};
}

Ours tova(const GoldenCase& g) {
  if (has(g, "cache_size")) return {cat("tova:budget=", whole(g, "cache_size"))};
  if (!g.has("q_pre")) return {};
  return {cat("tova:trigger=prompt,recent_window=1,budget=", whole(g, "n_kept"))};
}

Ours pyramidkv(const GoldenCase& g) {
  if (!g.has("k")) return {};  // a schedule alone
  Ours ours;
  if (has(g, "compression_ratio")) {
    const double budget = static_cast<double>(whole(g, "tokens")) * (1 - g.parameter<double>("compression_ratio"));
    if (budget != std::floor(budget)) return {};  // their budget is a fraction of a token there
    ours.setting = cat("pyramidkv:schedule=kvpress,pool_first=true,pooling=avg,window_reduce=mean,budget=", static_cast<std::int64_t>(budget),
                       ",observation_window=", whole(g, "window_size"));
    read_layer(g.name(), ours);
  } else {
    ours.setting = cat("pyramidkv:schedule=floor,budget=", whole(g, "max_capacity_prompt"), ",observation_window=", whole(g, "window_size"),
                       ",pooling=", pooling(g),
                       g.parameter<std::string>("granularity").starts_with("query") ? ",granularity=query_head" : "");
    ours.layer = static_cast<int>(whole(g, "layer_idx"));
    ours.layers = static_cast<int>(whole(g, "num_hidden_layers"));
  }
  ours.setting += cat(",beta=", whole(g, "beta"), ",kernel=", whole(g, "kernel_size"));
  return ours;
}

Ours adakv(const GoldenCase& g) {
  Ours ours;
  if (has(g, "base")) {
    const auto kept = static_cast<std::int64_t>(static_cast<double>(whole(g, "tokens")) * (1 - g.parameter<double>("compression_ratio")));
    ours.setting = cat("adakv:allocation=kvpress,floor=", g.parameter<double>("alpha_safeguard"), ",budget=", kept, ",score=",
                       g.parameter<std::string>("base"));
    if (g.parameter<std::string>("base") == "snapkv")  // base_params are text: window 16, kernel 5
      ours.setting += ",observation_window=16,kernel=5,pooling=avg,pool_first=true";
    return ours;
  }
  ours.setting = cat("adakv:allocation=rounded,normalize=true,budget=", whole(g, has(g, "base_capacity") ? "base_capacity" : "max_capacity_prompt"),
                     ",observation_window=", whole(g, "window_size"), ",kernel=", whole(g, "kernel_size"), ",pooling=", pooling(g),
                     ",floor=", g.parameter<double>(has(g, "floor") ? "floor" : "floor_alpha"));
  if (has(g, "pyram_mode") && g.parameter<bool>("pyram_mode")) ours.setting += ",pyramid=true";
  if (has(g, "layer_idx")) {
    ours.layer = static_cast<int>(whole(g, "layer_idx"));
    ours.layers = static_cast<int>(whole(g, "num_hidden_layers"));
  }
  return ours;
}

const std::map<std::string, SettingOf>& methods_compared() {
  static const std::map<std::string, SettingOf> table{
      {"knorm", key_scored}, {"keydiff", key_scored}, {"tova", tova}, {"pyramidkv", pyramidkv}, {"adakv", adakv}};
  return table;
}

Array without_batch(const NamedTensor& t) {
  Array a({t.dims[1], t.dims[2], t.dims[3]});
  a.values() = t.values;
  return a;
}

/// Queries as they enter attention. A case without queries (scores by keys) gets zeros; one with the last ones only gets
/// zeros before them.
Array queries_of(const GoldenCase& g, const Array& k) {
  const std::int64_t tokens = k.dims()[1], dim = k.dims()[2];
  if (g.has("q_pre")) {
    Array q = without_batch(g.floats("q_pre"));
    std::vector<std::int64_t> positions;
    for (std::int64_t t = 0; t < tokens; ++t) positions.push_back(t);
    RopeTable({.base = 10000.0, .rotary_dim = static_cast<int>(dim)}).apply(q.view(), positions);
    return q;
  }
  if (!g.has("q")) return Array({has(g, "q_heads") ? whole(g, "q_heads") : k.dims()[0], tokens, dim});
  const Array given = without_batch(g.floats("q"));
  Array q({given.dims()[0], tokens, dim});
  for (std::int64_t h = 0; h < given.dims()[0]; ++h)
    for (std::int64_t i = 0; i < given.dims()[1]; ++i)
      std::ranges::copy(given.view().row(h, i), q.view().row(h, tokens - given.dims()[1] + i).begin());
  return q;
}

struct Run {
  Traced traced;
  CacheShape shape;  // of all layers; only one is fed
  std::unique_ptr<KvCache> cache;
  std::string prefix;

  Run(const GoldenCase& g, const Ours& ours, const Array& k)
      : traced(queries_of(g, k).view(), k.view()), prefix(cat("layer", ours.layer, "/")) {
    const LayerClass& c = traced.shape().classes.front();
    shape = uniform_shape(ours.layers, c.q_heads, c.kv_heads, c.k_dim, Dtype::f32);
    const MethodChoice choice = parse_choice(ours.setting);
    const auto reason = why_not(*choice.method, choice.row, shape);
    INFO(reason.value_or(""));
    REQUIRE(!reason);
    cache = choice.method->open(choice.row, shape, {});
  }
  /// Tokens that stay, owner by owner.
  std::vector<std::vector<std::int64_t>> kept() const {
    std::vector<std::vector<std::int64_t>> all;
    const std::int64_t dim = traced.k().dim(2);
    const auto buffers = cache->buffers();
    for (const NamedBuffer& b : buffers) {
      if (!b.name.starts_with(prefix + "v_rows/")) continue;
      all.emplace_back();
      for (std::size_t at = 0; at < b.bytes.size(); at += static_cast<std::size_t>(dim) * sizeof(float)) {
        float token = 0;
        std::memcpy(&token, b.bytes.data() + at, sizeof token);
        all.back().push_back(static_cast<std::int64_t>(token));
      }
    }
    return all;
  }
};

std::vector<std::int64_t> flat(const std::vector<std::vector<std::int64_t>>& rows) {
  std::vector<std::int64_t> all;
  for (const auto& r : rows) all.insert(all.end(), r.begin(), r.end());
  return all;
}

/// Where scores tie exactly the official code chose arbitrarily: what we keep has the same scores.
void check_scores_kept(const GoldenCase& g, const char* array, const std::vector<std::vector<std::int64_t>>& ours,
                       const std::vector<std::vector<std::int64_t>>& theirs) {
  const NamedTensor scores = g.floats(array);
  const std::size_t width = static_cast<std::size_t>(scores.dims.back());
  std::vector<float> a, b;
  for (std::size_t h = 0; h < ours.size(); ++h) {
    const std::size_t base = h * width;
    for (const std::int64_t t : ours[h])
      if (static_cast<std::size_t>(t) < width) a.push_back(scores.values[base + static_cast<std::size_t>(t)]);
    for (const std::int64_t t : theirs[h])
      if (static_cast<std::size_t>(t) < width) b.push_back(scores.values[base + static_cast<std::size_t>(t)]);
  }
  std::ranges::sort(a);
  std::ranges::sort(b);
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= 2e-6F + 2e-5F * std::abs(b[i]));
}

/// Their choice, owner by owner, in ascending order.
std::vector<std::vector<std::int64_t>> their_choice(const GoldenCase& g, std::size_t owners) {
  std::vector<std::vector<std::int64_t>> rows(owners);
  if (g.has("keep_mask")) {
    const IntTensor mask = g.integers("keep_mask");
    const std::size_t tokens = mask.values.size() / owners;
    for (std::size_t i = 0; i < mask.values.size(); ++i)
      if (mask.values[i] != 0) rows[i / tokens].push_back(static_cast<std::int64_t>(i % tokens));
  } else if (g.has("kept_flat")) {
    const IntTensor lens = g.integers("head_lens"), all = g.integers("kept_flat");
    std::size_t at = 0;
    for (std::size_t h = 0; h < owners; ++h)
      for (std::int64_t i = 0; i < lens.values[h]; ++i) rows[h].push_back(all.values[at++]);
  } else {
    const IntTensor all = g.integers(g.has("kept_sorted") ? "kept_sorted" : g.has("kept") ? "kept" : "kept_step0");
    const std::size_t each = static_cast<std::size_t>(all.dims.back());
    for (std::size_t h = 0; h < owners; ++h)  // one set may serve all owners
      for (std::size_t i = 0; i < each; ++i) rows[h].push_back(all.values[(h * each + i) % all.values.size()]);
  }
  for (auto& r : rows) std::ranges::sort(r);
  return rows;
}

}  // namespace

TEST_CASE("eviction methods keep the tokens that the released codes keep", "[golden][eviction]") {
  for (const auto& [slug, setting_of] : methods_compared()) {
    int compared = 0;
    for (const GoldenCase& g : golden_cases(slug)) {
      CAPTURE(slug, g.name());
      const Ours ours = setting_of(g);
      if (ours.setting.empty()) continue;
      CAPTURE(ours.setting);
      const Array k = without_batch(g.floats("k"));
      const std::int64_t steps = has(g, "steps") ? whole(g, "steps") : 0;
      const std::int64_t prompt = k.dims()[1] - steps;
      Run run(g, ours, k);
      run.traced.run(*run.cache, 0, prompt, ours.layer);
      run.cache->end_prefill();
      const auto kept = run.kept();
      const auto theirs = their_choice(g, kept.size());
      ++compared;
      if (g.selection_margin().value_or(1.0) > 0) {
        int differ = 0;
        for (std::size_t h = 0; h < kept.size(); ++h) differ += kept[h] == theirs[h] ? 0 : 1;
        GoldenTable::row(slug, g.name(), "kept", "set", differ, 0, differ == 0);
        CHECK(kept == theirs);
      } else if (g.has("scores")) {
        check_scores_kept(g, "scores", kept, theirs);
      } else if (g.has("pooled")) {
        check_scores_kept(g, "pooled", kept, theirs);
      } else if (g.has("base_scores")) {
        check_scores_kept(g, "base_scores", kept, theirs);
      }
      for (std::int64_t s = 1; s <= steps; ++s) {
        run.traced.run(*run.cache, prompt + s - 1, 1, ours.layer);
        check_exact(g, cat("kept_step", s), flat({run.kept().front()}));
      }
    }
    CAPTURE(slug);
    CHECK(compared >= 2);
  }
}

TEST_CASE("kvpress' pyramid schedules are met where their budget is a whole number of tokens", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("pyramidkv")) {
    if (!g.has("layer_budgets") || !g.has("prompt_tokens")) continue;
    CAPTURE(g.name());
    const auto prompts = g.integers("prompt_tokens").values, theirs = g.integers("layer_budgets").values;
    const auto ratios = g.floats("compression_ratio").values;
    const int layers = static_cast<int>(whole(g, "layers"));
    int compared = 0;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const double budget = static_cast<double>(prompts[i]) * (1 - std::round(static_cast<double>(ratios[i]) * 1000) / 1000);
      if (budget != std::floor(budget)) continue;
      ++compared;
      for (int l = 0; l < layers; ++l) {
        CAPTURE(prompts[i], ratios[i], l);
        CHECK(eviction::pyramid_rows({Tokens(static_cast<std::int64_t>(budget)), Tokens(whole(g, "window_size")),
                                      static_cast<int>(whole(g, "beta")), eviction::Schedule::kvpress},
                                     {.layer = l, .ordinal = l, .layers = layers}, prompts[i]) ==
              theirs[i * static_cast<std::size_t>(layers) + static_cast<std::size_t>(l)]);
      }
    }
    CHECK(compared >= 2);
  }
}
