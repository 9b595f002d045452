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
#include "reference/primitives/eviction/query_scorers.hpp"
#include "reference/primitives/eviction/row_scorers.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

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

std::string flag(const GoldenCase& g, const char* name) { return g.parameter<bool>(name) ? "true" : "false"; }
/// kvpress keeps trunc(tokens * (1 - ratio)).
std::int64_t kept_of_ratio(const GoldenCase& g) {
  return static_cast<std::int64_t>(static_cast<double>(whole(g, "tokens")) * (1 - g.parameter<double>("compression_ratio")));
}

Ours expected_attention(const GoldenCase& g) {
  return {cat("expected_attention:budget=", whole(g, "n_kept"), ",sinks=", whole(g, "n_sink"), ",future_positions=", whole(g, "n_future_positions"),
              ",covariance=", flag(g, "use_covariance"), ",value_norm=", flag(g, "use_vnorm"), ",epsilon=", g.parameter<double>("epsilon"))};
}

Ours lagkv(const GoldenCase& g) {
  return {cat("lagkv:budget=", whole(g, "n_kept"), ",sinks=", whole(g, "n_sink"), ",lag=", whole(g, "lag_size"), ",ranked=",
              g.parameter<bool>("cross_scoring") ? "false" : "true")};
}

Ours cur(const GoldenCase& g) {
  if (g.parameter<bool>("use_random_leverage")) return {};  // their random directions
  return {cat("cur:budget=", whole(g, "n_kept"), ",sinks=", whole(g, "num_sinks"), ",window=", whole(g, "local_window_size"), ",sides=",
              g.parameter<std::string>("leverage_type"))};
}

Ours cap(const GoldenCase& g) {
  return {cat("cap:budget=", whole(g, "n_kept"), ",sinks=", whole(g, "n_sink"), ",future_positions=", whole(g, "n_future_positions"), ",tau=",
              g.parameter<double>("tau"))};
}

/// A wrapper over a base score; the base's own parameters are text there: window 16, kernel 5.
Ours wrapped(const GoldenCase& g, const std::string& setting) {
  const auto base = g.parameter<std::string>("base");
  if (base == "expected") return {};
  return {cat(setting, ",score=", base, base == "snapkv" ? ",observation_window=16,kernel=5,pooling=avg,pool_first=true" : "")};
}

Ours criticalkv(const GoldenCase& g) {
  return wrapped(g, cat("criticalkv:counts_window=true,budget=", kept_of_ratio(g), ",epsilon=", g.parameter<double>("epsilon"), ",first_stage=",
                        g.parameter<double>("first_stage_ratio"), g.parameter<std::string>("base") == "snapkv" ? "" : ",observation_window=1"));
}

Ours chunkkv(const GoldenCase& g) {
  return wrapped(g, cat("chunkkv:budget=", kept_of_ratio(g), ",chunk=", whole(g, "chunk_length"),
                        g.parameter<std::string>("base") == "snapkv" ? "" : ",observation_window=1"));
}

/// The layer's heads have the capacities of a table.
Ours headkv(const GoldenCase& g) {
  return {cat("headkv:budget=", whole(g, "max_capacity_prompt"), ",observation_window=", whole(g, "window_size"), ",kernel=",
              whole(g, "kernel_size"), ",pooling=", pooling(g)),
          static_cast<int>(whole(g, "layer_idx")), 2};
}

Ours simlayerkv(const GoldenCase& g) {
  return {cat("simlayerkv:threshold=", g.parameter<double>("lazy_threshold"), ",sinks=", whole(g, "n_initial"), ",recent_window=",
              whole(g, "n_recent"), ",last_queries=", whole(g, "n_last"))};
}

Ours finch(const GoldenCase& g) {
  if (!g.parameters().at("chunk_length").is_null()) return {};
  return {cat("finch:budget=", kept_of_ratio(g), ",observation_window=", whole(g, "window_size"), ",normalize=", flag(g, "normalize_scores"))};
}

/// What a wrapped score keeps; keys turn behind the choice.
Ours key_rerotation(const GoldenCase& g) {
  if (g.parameter<std::string>("base") != "knorm") return {};
  return {cat("key_rerotation:score=knorm,budget=", kept_of_ratio(g))};
}

/// Their window and capacity are the enlarged ones: window + lookahead + 1 queries.
Ours speckv(const GoldenCase& g) {
  if (g.parameters().at("max_capacity_prompt").is_null()) return {};  // scores alone
  const bool largest = g.parameter<std::string>("pool_type") == "max";
  return {cat("speckv:lookahead=0,observation_window=", whole(g, "window_size") - 1, ",budget=", whole(g, "max_capacity_prompt") - 1, ",kernel=",
              whole(g, "kernel_size"), ",pooling=", largest ? "max" : "avg", ",reduce=", g.parameter<std::string>("reduction_type"))};
}

const std::map<std::string, SettingOf>& methods_compared() {
  static const std::map<std::string, SettingOf> table{
      {"knorm", key_scored}, {"keydiff", key_scored}, {"tova", tova}, {"pyramidkv", pyramidkv}, {"adakv", adakv},
      {"expected_attention", expected_attention}, {"lagkv", lagkv}, {"cur", cur}, {"cap", cap}, {"criticalkv", criticalkv},
      {"chunkkv", chunkkv}, {"headkv", headkv}, {"simlayerkv", simlayerkv}, {"finch", finch}, {"key_rerotation", key_rerotation}, {"speckv", speckv}};
  return table;
}

/// What trained files hold, under our names.
TensorMap trained_of(const GoldenCase& g, int layers) {
  TensorMap trained;
  if (g.has("Wo")) trained["layer0.w_o"] = g.floats("Wo");
  if (g.has("capacity_table")) {
    const IntTensor table = g.integers("capacity_table");
    const auto heads = static_cast<std::size_t>(table.dims[1]);
    for (int l = 0; l < layers; ++l) {
      NamedTensor& row = trained[cat("layer", l, ".head_budgets")];
      row.dims = {table.dims[1]};
      for (std::size_t h = 0; h < heads; ++h) row.values.push_back(static_cast<float>(table.values[static_cast<std::size_t>(l) * heads + h]));
    }
  }
  return trained;
}

/// One case run through a cache. Queries before RoPE are rotated by us, and keys are turned back first; a case without them gives
/// queries as they enter attention, or (scores by keys alone) none. Values that a case lacks carry the number of their token.
struct Run {
  Array q, k, v;
  CacheShape shape;  // of all layers; only one is fed
  std::unique_ptr<KvCache> cache;
  int layer;

  Run(const GoldenCase& g, const Ours& ours) : k(without_batch(g.floats(g.has("k") ? "k" : "k_pre"))), layer(ours.layer) {
    const std::int64_t tokens = k.dims()[1], dim = k.dims()[2];
    const bool rotates = g.has("q_pre") || has(g, "rope_base");
    RopeSpec rope;
    if (rotates) rope = {.base = has(g, "rope_base") ? g.parameter<double>("rope_base") : 10000.0, .rotary_dim = static_cast<int>(dim)};
    if (rotates) RopeTable(rope).apply_inverse(k.view(), positions(0, tokens));
    if (g.has("q_pre") || g.has("q")) {
      const Array given = without_batch(g.floats(g.has("q_pre") ? "q_pre" : "q"));  // perhaps the last ones only
      q = Array({given.dims()[0], tokens, dim});
      for (std::int64_t h = 0; h < given.dims()[0]; ++h)
        for (std::int64_t i = 0; i < given.dims()[1]; ++i)
          std::ranges::copy(given.view().row(h, i), q.view().row(h, tokens - given.dims()[1] + i).begin());
    } else {
      q = Array({has(g, "q_heads") ? whole(g, "q_heads") : k.dims()[0], tokens, dim});
    }
    v = g.has("v") ? without_batch(g.floats("v")) : Array({k.dims()[0], tokens, dim});
    for (std::int64_t h = 0; h < k.dims()[0] && !g.has("v"); ++h)
      for (std::int64_t t = 0; t < tokens; ++t) v.view()(h, t, 0) = static_cast<float>(t);
    shape = uniform_shape(ours.layers, static_cast<int>(q.dims()[0]), static_cast<int>(k.dims()[0]), static_cast<int>(dim), Dtype::f32, rope);
    const MethodChoice choice = parse_choice(ours.setting);
    const auto reason = why_not(*choice.method, choice.row, shape);
    INFO(reason.value_or(""));
    REQUIRE(!reason);
    const TensorMap trained = trained_of(g, ours.layers);
    cache = choice.method->open(choice.row, shape, {.trained = trained.empty() ? nullptr : &trained});
  }
  static std::vector<std::int64_t> positions(std::int64_t first, std::int64_t n) {
    std::vector<std::int64_t> out;
    for (std::int64_t i = 0; i < n; ++i) out.push_back(first + i);
    return out;
  }
  void feed(std::int64_t first, std::int64_t n) {
    const auto at = positions(first, n);
    Array out({q.dims()[0], n, v.dims()[2]});
    const auto part = [&](const Array& a) { return a.view().slice(1, first, n); };
    cache->forward(layer, {.q = part(q), .k = part(k), .v = part(v), .positions = {at.data(), {n}}}, out.view());
  }
  /// Tokens that stay, owner by owner: stored values are looked up among those that were fed, in ascending order.
  std::vector<std::vector<std::int64_t>> kept() const {
    std::vector<std::vector<std::int64_t>> all;
    const std::size_t width = static_cast<std::size_t>(v.dims()[2]) * sizeof(float);
    const auto buffers = cache->buffers();
    std::int64_t owners = 0;
    for (const NamedBuffer& b : buffers) owners += b.name.starts_with(cat("layer", layer, "/v_rows/")) ? 1 : 0;
    for (const NamedBuffer& b : buffers) {
      if (!b.name.starts_with(cat("layer", layer, "/v_rows/"))) continue;
      const std::int64_t head = static_cast<std::int64_t>(all.size()) * v.dims()[0] / owners;
      all.emplace_back();
      std::int64_t t = 0;
      for (std::size_t at = 0; at < b.bytes.size(); at += width, ++t) {
        while (t < v.dims()[1] && std::memcmp(v.view().row(head, t).data(), b.bytes.data() + at, width) != 0) ++t;
        REQUIRE(t < v.dims()[1]);
        all.back().push_back(t);
      }
    }
    return all;
  }
};

/// Keys as stored, head by head.
std::vector<float> stored_keys(const KvCache& cache, int layer) {
  std::vector<float> all;
  for (const NamedBuffer& b : cache.buffers()) {
    if (!b.name.starts_with(cat("layer", layer, "/k_rows/"))) continue;
    const std::size_t from = all.size();
    all.resize(from + b.bytes.size() / sizeof(float));
    std::memcpy(all.data() + from, b.bytes.data(), b.bytes.size());
  }
  return all;
}

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
      Run run(g, ours);
      const std::int64_t steps = has(g, "steps") ? whole(g, "steps") : 0;
      const std::int64_t prompt = run.k.dims()[1] - steps;
      run.feed(0, prompt);
      run.cache->end_prefill();
      const auto kept = run.kept();
      const auto theirs = their_choice(g, kept.size());
      ++compared;
      const bool ties = g.slug() == "headkv" && pooling(g) == "max";  // neighbours under one maximum; no margin was recorded
      if (g.selection_margin().value_or(ties ? 0.0 : 1.0) > 0) {
        int differ = 0;
        for (std::size_t h = 0; h < kept.size(); ++h) differ += kept[h] == theirs[h] ? 0 : 1;
        GoldenTable::row(slug, g.name(), "kept", "set", differ, 0, differ == 0);
        CHECK(kept == theirs);
        if (g.has("keys_out")) check_bound(g, "keys_out", stored_keys(*run.cache, run.layer), tolerance_of(g, "keys_out"));  // turned
      } else if (g.has("scores")) {
        check_scores_kept(g, "scores", kept, theirs);
      } else if (g.has("pooled")) {
        check_scores_kept(g, "pooled", kept, theirs);
      } else if (g.has("base_scores")) {
        check_scores_kept(g, "base_scores", kept, theirs);
      }
      for (std::int64_t s = 1; s <= steps; ++s) {
        run.feed(prompt + s - 1, 1);
        check_exact(g, cat("kept_step", s), flat({run.kept().front()}));
      }
    }
    CAPTURE(slug);
    CHECK(compared >= 1);
  }
}

TEST_CASE("leverage and non-causal scores are kvpress' on its own random directions", "[golden][eviction]") {
  for (const char* slug : {"leverage", "compactor"})
    for (const GoldenCase& g : golden_cases(slug)) {
      CAPTURE(g.name());
      const bool both = g.slug() == "compactor";
      const Array pre = without_batch(g.floats("k_pre"));
      const std::int64_t n = pre.dims()[1];
      const int dim = static_cast<int>(pre.dims()[2]), heads = static_cast<int>(pre.dims()[0]);
      const std::int64_t first = both ? whole(g, "sink_size_start") : 0, last = both ? whole(g, "sink_size_end") : 0;
      const NamedTensor phi = g.floats("phi_unscaled");
      const LayerClass c = uniform_shape(1, both ? static_cast<int>(whole(g, "q_heads")) : heads, heads, dim, Dtype::f32).classes.front();
      const RopeTable unrotated(c.rope);
      TokenRows before_rope(heads, dim, dim, Dtype::f32);
      before_rope.append(pre.view(), pre.view());
      const eviction::Scene scene{.c = c, .place = {}, .rows = before_rope, .queries = pre.view(), .rope = unrotated};
      const auto width = phi.dims.back();
      auto scores = eviction::leverage_scores(scene, {.sketch = static_cast<int>(whole(g, "sketch_dimension")), .first = first, .last = last,
                                                      .draw = [&](int h, std::int64_t i, std::int64_t j) {
                                                        return static_cast<double>(phi.values[static_cast<std::size_t>((h * dim + i) * width + j)]);
                                                      }});
      eviction::z_score(scores);
      if (both) {
        // Keys as cached: their rounding counts, for logits are not scaled down. Queries were rotated without any.
        Array queries = without_batch(g.floats("q_pre"));
        RopeTable({.base = 10000.0, .rotary_dim = dim}).apply(queries.view(), Run::positions(0, n));
        TokenRows rows(heads, dim, dim, Dtype::f32);
        rows.append(without_batch(g.floats("k")).view(), without_batch(g.floats("v")).view());
        const eviction::Scene cached{.c = c, .place = {}, .rows = rows, .queries = queries.view(), .rope = unrotated};
        auto attention = eviction::non_causal_scores(cached, {.chunk = whole(g, "chunk_size"), .first = first, .last = last, .padded = true});
        eviction::z_score(attention);
        for (std::size_t h = 0; h < scores.size(); ++h)
          for (std::size_t t = 0; t < scores[h].size(); ++t)
            scores[h][t] = static_cast<float>(g.parameter<double>("blending")) * scores[h][t] + attention[h][t];
      }
      const NamedTensor theirs = g.floats("scores");
      double error = 0;
      for (std::size_t h = 0; h < scores.size(); ++h)
        for (std::size_t t = 0; t < scores[h].size(); ++t)
          error = std::max(error, std::abs(static_cast<double>(scores[h][t]) -
                                           static_cast<double>(theirs.values[h * static_cast<std::size_t>(n) + static_cast<std::size_t>(first) + t])));
      GoldenTable::row(slug, g.name(), "scores", "bound", error, 1e-4, error <= 1e-4);
      CHECK(error <= 1e-4);
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
