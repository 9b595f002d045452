#include "sweeps/recommend.hpp"

#include <algorithm>
#include <set>

#include "models/registry.hpp"
#include "reference/registry.hpp"
#include "sweeps/json.hpp"
#include "sweeps/quality.hpp"
#include "sweeps/recommend_why.hpp"
#include "sweeps/rerank.hpp"
#include "sweeps/settings.hpp"
#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;
using namespace kvatlas::sweep::testing;

namespace {

RecommendRequest request(const char* model, const char* gpu, Tokens prompt, Tokens output) {
  RecommendRequest r;
  r.deployment.model = &models::find_model(model);
  r.deployment.gpu = sim::find_gpu(gpu);
  r.workload.prompt = prompt;
  r.workload.output = output;
  return r;
}

std::vector<Recommendation> all_of(const RecommendReport& report) {
  std::vector<Recommendation> out = report.deployable;
  out.insert(out.end(), report.research.begin(), report.research.end());
  std::sort(out.begin(), out.end(), [](const Recommendation& a, const Recommendation& b) { return a.rank < b.rank; });
  return out;
}

}  // namespace

TEST_CASE("the first 20 by the closed form are ranked by what they serve, and every method is ranked or excluded", "[unit]") {
  RecommendRequest r = request("llama-3.1-8b", "rtx-4090", 32768_tok, 512_tok);
  r.workload.slo.tpot_s = 0.05;
  const RecommendReport report = recommend(r);
  const std::vector<Recommendation> all = all_of(report);
  REQUIRE_FALSE(all.empty());
  std::set<std::string> named;
  for (std::size_t i = 0; i < all.size(); ++i) {
    CAPTURE(all[i].recipe.canonical());
    REQUIRE(all[i].rank == static_cast<int>(i) + 1);
    REQUIRE(all[i].served.has_value() == (i < kRerankedFirst || all[i].best_of_method));
    if (i > 0 && i < kRerankedFirst) REQUIRE(all[i].served->requests_per_s <= all[i - 1].served->requests_per_s);
    if (i > 0 && i >= kRerankedFirst)
      for (std::size_t j = 0; j < i; ++j) REQUIRE(all[i].figures.requests_per_s <= all[j].figures.requests_per_s);
    if (i < kRerankedFirst) REQUIRE(all[i].served->requests_per_s > 0);
    REQUIRE(all[i].figures.low_requests_per_s <= all[i].figures.requests_per_s);
    REQUIRE(all[i].figures.requests_per_s <= all[i].figures.high_requests_per_s);
    REQUIRE(all[i].figures.tpot_s <= 0.05);
    named.insert(all[i].recipe.main().slug);
    REQUIRE(all[i].why.find("bind") != std::string::npos);
    if (all[i].recipe.canonical() != "full") REQUIRE_FALSE(all[i].quality.value);
  }
  for (const Exclusion& e : report.excluded) {
    CAPTURE(e.method);
    REQUIRE(e.why.size() > 10);
    named.insert(e.method.substr(0, e.method.find(':')));
  }
  for (const Method* m : all_methods()) {
    CAPTURE(m->slug);
    REQUIRE(named.contains(m->slug));
  }
  for (const Recommendation& one : report.research) REQUIRE(one.deployable.empty());
  for (const std::string& slug : named)
    REQUIRE(std::count_if(all.begin(), all.end(), [&](const Recommendation& one) { return one.best_of_method && one.recipe.main().slug == slug; }) <= 1);
}

TEST_CASE("without evidence a method speaks at its defaults, and nothing that forgets tokens is advised before the rest", "[unit]") {
  RecommendRequest r = request("llama-3.1-8b", "h100-sxm", 32768_tok, 1024_tok);
  r.candidates = {Recipe::parse("full"), Recipe::parse("streaming_llm"), Recipe::parse("streaming_llm:recent_window=252"), Recipe::parse("fp8_kv")};
  const RecommendReport report = recommend(r);
  for (const Recommendation& one : all_of(report)) {
    CAPTURE(one.recipe.canonical());
    REQUIRE(one.forgets == (std::string_view(one.recipe.main().slug) == "streaming_llm"));
    REQUIRE(one.best_of_method == (one.recipe.canonical().find(':') == std::string::npos));
    if (one.forgets) REQUIRE(one.why.find("forgets the rest") != std::string::npos);
  }
  REQUIRE(report.advised);
  REQUIRE(report.advised->recipe.canonical() == "fp8_kv");
  r.evidence = [](const models::Model&, const Recipe& recipe, const std::string&) -> std::optional<Quality> {
    return Quality{.value = std::string_view(recipe.main().slug) == "streaming_llm" ? 0.99 : 0.5, .grade = "M", .model = "", .source = ""};
  };
  r.min_quality = 0.9;
  REQUIRE(recommend(r).advised->recipe.canonical() == "streaming_llm:recent_window=252");
}

TEST_CASE("where prefill is nearly everything, no method that leaves it alone is credited with more than Amdahl's bound", "[unit]") {
  RecommendRequest r = request("llama-3.1-8b", "h100-sxm", 131072_tok, 256_tok);
  const RecommendReport report = recommend(r);
  REQUIRE(report.plain);
  const double bound = 1 / prefill_share(*report.plain, r.workload);
  for (const Recommendation& one : all_of(report)) {
    CAPTURE(one.recipe.canonical(), bound);
    if (one.figures.prefill_s >= report.plain->prefill_s) REQUIRE(*one.speedup <= bound * (1 + 1e-9));
  }
}

TEST_CASE("constraints exclude with their reason", "[unit]") {
  RecommendRequest r = request("llama-3.1-8b", "h100-sxm", 8192_tok, 1024_tok);
  r.min_quality = 0.98;
  const RecommendReport unknown = recommend(r);
  for (const Recommendation& one : all_of(unknown)) REQUIRE(one.recipe.canonical() == "full");
  REQUIRE(std::any_of(unknown.excluded.begin(), unknown.excluded.end(), [](const Exclusion& e) { return e.why.find("quality unknown (accepted evidence: m, p), must be at least 0.98") == 0; }));
  REQUIRE(unknown.advised_why == "no other method has accepted evidence (m, p) of quality of at least 0.98");
  r.candidates = {Recipe::parse("full")};
  REQUIRE(recommend(r).advised_why == "the plain cache is the only one that was asked about");

  r.min_quality = 0.9;
  r.candidates = {Recipe::parse("full"), Recipe::parse("kivi:bits=4"), Recipe::parse("kivi:bits=2")};
  r.evidence = [](const models::Model&, const Recipe& recipe, const std::string& accepted) -> std::optional<Quality> {
    REQUIRE(accepted == "MP");
    return Quality{.value = recipe.canonical() == "kivi:bits=4" ? 0.99 : 0.5, .grade = "M", .model = "llama-3.1-8b", .source = "a test"};
  };
  const RecommendReport known = recommend(r);
  for (const Recommendation& one : all_of(known)) REQUIRE(one.recipe.canonical() != "kivi");
  REQUIRE(std::any_of(known.excluded.begin(), known.excluded.end(), [](const Exclusion& e) { return e.why == "quality 0.5000 (M), must be at least 0.9"; }));

  RecommendRequest small = request("llama-3.1-8b", "h100-sxm", 8192_tok, 64_tok);
  small.memory_gib = 2;
  const RecommendReport none = recommend(small);
  REQUIRE(all_of(none).empty());
  REQUIRE(none.binds.find("a plain cache cannot serve this: needs ") == 0);
}

TEST_CASE("an engine's own methods and the plain cache remain when one is named", "[unit]") {
  RecommendRequest r = request("llama-3.1-8b", "h100-sxm", 8192_tok, 1024_tok);
  r.deployable = "vllm";
  std::set<std::string> engines;
  for (const Method* m : all_methods())
    for (const Deployable& d : m->deployable) engines.insert(d.engine);
  REQUIRE_FALSE(engines.empty());
  r.deployable = *engines.begin();
  const RecommendReport report = recommend(r);
  REQUIRE(report.research.empty());
  for (const Recommendation& one : report.deployable) REQUIRE(std::find(one.deployable.begin(), one.deployable.end(), *r.deployable) != one.deployable.end());
  r.deployable = "no-such-engine";
  REQUIRE(sentence_of([&] { recommend(r); }).find("deployable: \"no-such-engine\": unknown engine") == 0);
}

TEST_CASE("a bad request is refused with a sentence", "[unit]") {
  REQUIRE(sentence_of([] { recommend(request("llama-3.1-8b", "h100-sxm", 0_tok, 1_tok)); }) == "prompt is 0, must be at least 1 token");
  REQUIRE(sentence_of([] { recommend(request("llama-3.1-8b", "h100-sxm", 1_tok, 0_tok)); }) == "output is 0, must be at least 1 token");
  RecommendRequest r = request("llama-3.1-8b", "h100-sxm", 1024_tok, 16_tok);
  r.min_quality = 98;
  REQUIRE(sentence_of([&] { recommend(r); }) == "min-quality is 98, must be from 0 to 1 (the retained share)");
  REQUIRE(sentence_of([] { parse_grades("m,q"); }) == "quality-evidence is \"m,q\", must be a list of m, p, c, f, x");
  REQUIRE(parse_grades("p, m") == "PM");
}

TEST_CASE("the JSON of recommend has the keys of its contract", "[unit]") {
  const nlohmann::json j = to_json(recommend(request("llama-3.1-8b", "h100-sxm", 4096_tok, 512_tok)));
  for (const char* key : {"recommendations", "excluded", "uncertain", "binds"}) REQUIRE(j.contains(key));
  for (const auto& row : j["recommendations"])
    for (const char* key : {"rank", "method", "params", "requests_per_s", "interval", "speedup", "speedup_decode_only", "size_factor", "quality", "deployable", "why", "bound_by", "provenance"})
      REQUIRE(row.contains(key));
  for (const auto& row : j["recommendations"]) {
    REQUIRE(row["interval"]["provenance"] == "computed");
    REQUIRE(row["energy_provenance"] == "assumed");
    REQUIRE(row["quality"].contains("provenance"));
    REQUIRE(row["quality"]["provenance"].is_null() == row["quality"]["value"].is_null());
  }
  REQUIRE(to_json(MergeReport{})["provenance"] == "computed");
  REQUIRE(to_json(DiffReport{.changed = {{.key = "k", .configuration = "{}", .context = 1, .batch = 1, .figures = {{"energy_j", "1", "2", 1}}, .worst = 1}}})["changed"][0]["figures"][0]["provenance"] == "assumed");
}

TEST_CASE("quality in a store is looked up by model, recipe and accepted grade", "[unit]") {
  const TempFolder folder;
  {
    Store store(folder / "q.sqlite");
    store.database().exec("INSERT INTO quality(model, recipe, quality_model, metric, value, retained, protocol, grade, source, provenance) VALUES"
                          "('llama-3.1-8b', 'kivi', 'llama-3.1-8b', 'perplexity', 6.5, 0.97, 'a', 'M', 's', 'measured'),"
                          "('llama-3.1-8b', 'kivi', 'llama-3.1-8b', 'top1', 0.95, 0.95, 'a', 'M', 's', 'measured'),"
                          "('llama-3.1-8b', 'kivi', 'smollm2-135m', 'top1', 0.7, 0.7, 'a', 'X', 's', 'measured')");
  }
  const QualityEvidence look = quality_of_store((folder / "q.sqlite").string());
  const models::Model& m = models::find_model("llama-3.1-8b");
  REQUIRE(look(m, Recipe::parse("kivi"), "MP")->value == 0.95);
  REQUIRE(look(m, Recipe::parse("kivi"), "MP")->provenance == "measured");
  REQUIRE(look(m, Recipe::parse("kivi"), "X")->value == 0.7);
  REQUIRE_FALSE(look(m, Recipe::parse("kivi"), "PC"));
  REQUIRE_FALSE(look(m, Recipe::parse("full"), "MPCFX"));
}

TEST_CASE("an evaluation's figures speak for their model, for its family as F, for all others as a proxy", "[unit]") {
  const TempFolder folder;
  const std::filesystem::path path = folder / "e.sqlite";
  const QualityRow row{.model = "qwen3-8b", .recipe = "kivi", .quality_model = "Qwen3 8B", .metric = "perplexity", .value = 30, .retained = 0.9,
                       .context = 1024, .protocol = "a", .n = 256, .ci95_low = 29, .ci95_high = 31, .grade = "M", .source = "s"};
  store_quality(path, std::vector{row});
  QualityRow again = row;
  again.retained = 0.8;
  store_quality(path, std::vector{again});  // the same figure, measured anew
  const QualityEvidence look = quality_of_store(path.string());
  const models::Model &own = models::find_model("qwen3-8b"), &family = models::find_model("qwen3-32b"), &other = models::find_model("llama-3.1-8b");
  REQUIRE(look(own, Recipe::parse("kivi"), "MPCFX")->value == 0.8);
  REQUIRE(look(own, Recipe::parse("kivi"), "MPCFX")->grade == "M");
  REQUIRE_FALSE(look(family, Recipe::parse("kivi"), "MPC"));
  REQUIRE(look(family, Recipe::parse("kivi"), "MPFX")->grade == "F");
  REQUIRE(look(family, Recipe::parse("kivi"), "X") == std::nullopt);
  REQUIRE(look(other, Recipe::parse("kivi"), "MPCFX")->grade == "X");
  REQUIRE(look(other, Recipe::parse("kivi"), "X")->model == "Qwen3 8B");

  // Rows of older versions may say what too small a run retains.
  QualityRow small = row;
  small.recipe = "h2o";
  small.n = 255;
  QualityRow unsure = row;
  unsure.recipe = "snapkv";
  unsure.ci95_low = unsure.ci95_high = std::nullopt;
  store_quality(path, std::vector{small, unsure});
  REQUIRE_FALSE(quality_of_store(path.string())(own, Recipe::parse("h2o"), "M"));
  REQUIRE_FALSE(quality_of_store(path.string())(own, Recipe::parse("snapkv"), "M"));
}

TEST_CASE("settings name parameters and recipes that exist, and each recipe once", "[unit]") {
  const Settings s = several_settings();
  std::set<std::string> seen;
  for (const Recipe& r : s.recipes) REQUIRE(seen.insert(r.canonical()).second);
  for (const Method* m : all_methods()) REQUIRE(seen.contains(m->slug) == writes_in_order(*m));
  REQUIRE_FALSE(seen.contains("sparse_dllm"));
  REQUIRE(s.recipes.size() > all_methods().size());
  for (const std::string& sentence : s.left_out) REQUIRE(sentence.find("must be") != std::string::npos);
  REQUIRE_FALSE(seen.contains("kivi:bits=3"));  // 3-bit codes do not fill a 32-bit word: the method refuses them on every shape
}
