#include "sweeps/quality_table.hpp"

#include <set>

#include "models/registry.hpp"
#include "reference/registry.hpp"
#include "sweeps/pareto.hpp"
#include "sweeps/quality_plan.hpp"
#include "sweeps/recommend.hpp"
#include "sweeps/runner.hpp"
#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;
using namespace kvatlas::sweep::testing;

namespace {

constexpr const char* kPlan = R"({"contexts": [512, 1024], "scored": 640, "settings": [["budget=C/2", "budget=C/16"], ["bits=8", "bits=1"]], "methods": {"kivi": ["bits=2", "bits=4"]}})";

std::vector<std::string> recipes_of_method(const QualityPlan& plan, std::int64_t context, const std::string& slug) {
  std::vector<std::string> out;
  for (const Recipe& r : plan.recipes(context))
    if (r.main().slug == slug) out.push_back(r.canonical());
  return out;
}

QualityTable small_table() {
  QualityTable t{.model = "qwen3-8b", .quality_model = "Qwen3 8B", .weights_hash = "aa", .text_hash = "bb", .protocol = "a", .dtype = "bf16", .scored = 640, .windows = 1, .chunk = 0, .seed = 3, .rows = {}};
  QualityTableRow row{.context = 512, .recipe = "kivi", .ran = {}, .grade = "M", .verdict = "differs", .version = "1", .failure = {}};
  row.figures[0] = 640;   // n
  row.figures[1] = 20;    // perplexity_full
  row.figures[2] = 25;    // perplexity
  row.figures[3] = 24;    // and its interval
  row.figures[4] = 26;
  row.stored_bytes = 123456789012;
  row.dense_bytes = 987654321098;
  t.put(row);
  t.put({.context = 512, .recipe = "k=kivi;v=full", .ran = {}, .grade = "M", .verdict = {}, .version = "1", .failure = "said \"no\", twice"});
  row.recipe = "full";
  row.ran = {};
  t.put(row);
  return t;
}

}  // namespace

TEST_CASE("a quality plan spells every method at its settings, budgets as shares of the context", "[unit]") {
  const QualityPlan plan = read_quality_plan(kPlan, "p");
  REQUIRE(plan.recipes(512)[0].canonical() == "full");
  REQUIRE(recipes_of_method(plan, 512, "snapkv") == std::vector<std::string>{"snapkv:budget=256", "snapkv:budget=32"});
  REQUIRE(recipes_of_method(plan, 1000, "snapkv") == std::vector<std::string>{"snapkv:budget=500", "snapkv:budget=62"});
  REQUIRE(recipes_of_method(plan, 512, "kivi") == std::vector<std::string>{"kivi", "kivi:bits=4"});  // its own, in their order
  REQUIRE(recipes_of_method(plan, 512, "gear") == std::vector<std::string>{"gear:bits=8"});          // one bit is outside its range
  REQUIRE(recipes_of_method(plan, 512, "streaming_llm") == std::vector<std::string>{"streaming_llm"});
  std::set<std::string> methods;
  for (const Recipe& r : plan.recipes(512)) methods.insert(r.main().slug);
  REQUIRE(methods.size() == all_methods().size());
}

TEST_CASE("the committed plan is possible, and refusals name their place", "[unit]") {
  const auto refused = [](const char* text) { return sentence_of([&] { (void)read_quality_plan(text, "p"); }); };
  REQUIRE(refused(R"({})") == "p: contexts is missing");
  REQUIRE(refused(R"({"contexts": 512, "protocol": "c"})") == "p: protocol is \"c\", must be a or b");
  REQUIRE(refused(R"({"contexts": 512, "chunk": 64})") == "p: chunk: says nothing about protocol a");
  REQUIRE(refused(R"({"contexts": 512, "methods": {"kivy": ["bits=2"]}})").find("did you mean \"kivi\"") != std::string::npos);
  REQUIRE(refused(R"({"contexts": 512, "methods": {"kivi": ["bits=9"]}})").find("bits is \"9\"") != std::string::npos);
  REQUIRE(refused(R"({"contexts": 512, "methods": {"snapkv": ["budget=C/0"]}})") == "p: setting \"budget=C/0\" has C/0, must be a share of the context like C/8");
}

TEST_CASE("a quality table reads back as it was written, rows in the order of contexts and recipes", "[unit]") {
  const QualityTable t = small_table();
  const std::string text = write_quality_table(t);
  REQUIRE(t.rows[0].recipe == "full");
  const auto back = read_quality_tables(text + text, "t");
  REQUIRE(back.size() == 2);
  REQUIRE(write_quality_table(back[1]) == text);
  REQUIRE_FALSE(differs_in(back[0], t));
  REQUIRE(back[0].find(512, "k=kivi;v=full")->failure == "said \"no\", twice");
  REQUIRE(back[0].find(512, "kivi")->stored_bytes == 123456789012);
  REQUIRE_FALSE(back[0].find(512, "kivi")->figure("kl_mean"));
  REQUIRE(back[0].find(1024, "kivi") == nullptr);
  QualityTable other = t;
  other.text_hash = "cc";
  REQUIRE(*differs_in(t, other) == "text_hash is bb there and cc here");
  REQUIRE(sentence_of([&] { (void)read_quality_tables(text.substr(0, text.find("# seed")), "t"); }) == "t: a quality table lacks the line \"# seed: ...\"");
  std::string broken = text;
  broken.replace(broken.find(",differs,"), 9, ",differs,x");
  REQUIRE(sentence_of([&] { (void)read_quality_tables(broken, "t"); }).find("must be a number") != std::string::npos);
}

TEST_CASE("a table's rows in a store say what is retained where the run is evidence, and refusals say nothing", "[unit]") {
  const auto rows = quality_rows(small_table());
  REQUIRE(rows.size() == 2);  // perplexity of full and of kivi
  REQUIRE(rows[1].recipe == "kivi");
  REQUIRE(*rows[1].retained == 0.8);
  REQUIRE(rows[1].grade == "M");
  QualityTable small = small_table();
  small.rows[1].figures[0] = 255;  // too few scored tokens
  for (const QualityRow& r : quality_rows(small))
    if (r.n == 255) REQUIRE_FALSE(r.retained);
}

TEST_CASE("what ships has a source, names recipes as they are spelled, and published figures are evidence of grade P", "[unit]") {
  std::size_t published = 0;
  for (const QualityRow& r : shipped_quality()) {
    CAPTURE(r.recipe, r.model);
    REQUIRE_FALSE(r.source.empty());
    REQUIRE(Recipe::parse(r.recipe).canonical() == r.recipe);
    if (r.retained) REQUIRE((*r.retained > 0 && *r.retained <= 1));
    published += r.grade == "P" ? 1 : 0;
  }
  REQUIRE(published >= 25);
  const QualityEvidence look = known_quality(std::nullopt);
  const models::Model &own = models::find_model("qwen3-8b"), &family = models::find_model("qwen3-32b"), &other = models::find_model("llama-3.1-8b");
  const auto snapkv = look(own, Recipe::parse("snapkv:budget=2048"), "MP");
  REQUIRE(snapkv->grade == "P");
  REQUIRE(snapkv->provenance == "published");
  REQUIRE(*snapkv->value == 20.0 / 40.8);  // the worse of two tasks
  REQUIRE(look(family, Recipe::parse("snapkv:budget=2048"), "F")->grade == "F");
  REQUIRE(look(other, Recipe::parse("snapkv:budget=2048"), "X")->grade == "X");
  REQUIRE_FALSE(look(other, Recipe::parse("snapkv:budget=2048"), "MP"));
  REQUIRE_FALSE(look(models::find_model("llama-2-7b"), Recipe::parse("treekv:tree=508,recent_window=508"), "MPCFX"));  // nothing of the plain cache is known
}

TEST_CASE("the shipped model's own figures speak for no other model", "[unit]") {
  const TempFolder folder;
  QualityTable t = small_table();
  t.model = "embedded";
  store_quality(folder / "q.sqlite", quality_rows(t));
  const QualityEvidence look = quality_of_store((folder / "q.sqlite").string());
  REQUIRE_FALSE(look(models::find_model("qwen3-8b"), Recipe::parse("kivi"), "MPCFX"));
  models::Model embedded;
  embedded.slug = "embedded";
  REQUIRE(look(embedded, Recipe::parse("kivi"), "M")->value == 0.8);
}

TEST_CASE("a front under a quality limit keeps what is known to hold it and tells apart what is unknown", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(R"({"models":["llama-3.2-1b"],"gpus":["h100-sxm"],"methods":["full","kivi:bits=2|4|8"],"contexts":["4K"],"batches":[1,4]})", "s"), path);
  QualityRow row{.model = "llama-3.2-1b", .recipe = "kivi", .quality_model = "w", .metric = "perplexity", .value = 30, .retained = 0.7,
                 .context = 1024, .protocol = "a", .n = 640, .ci95_low = 29, .ci95_high = 31, .grade = "M", .source = "s"};
  QualityRow good = row;
  good.recipe = "kivi:bits=4";
  good.retained = 0.99;
  store_quality(path, std::vector{row, good});
  ParetoQuery query{.x = "size_factor", .y = "tokens_per_s", .where = "batch=4"};
  REQUIRE_FALSE(pareto(path, query)[0].contains("quality"));
  query.evidence = known_quality(path.string());
  const auto free = pareto(path, query);
  REQUIRE(free[0].at("recipe") == "kivi");
  REQUIRE(free[0].at("quality").at("grade") == "M");
  query.min_quality = 0.95;
  const auto limited = pareto(path, query);
  std::set<std::string> known, unknown;
  for (const auto& p : limited) (p.at("on_front").is_null() ? unknown : known).insert(p.at("recipe").get<std::string>());
  REQUIRE(known.contains("kivi:bits=4"));
  REQUIRE_FALSE(known.contains("kivi"));
  REQUIRE_FALSE(known.contains("kivi:bits=8"));
  for (const auto& p : limited)
    if (p.at("on_front").is_null()) REQUIRE(p.at("quality").at("source").get<std::string>().find("kvatlas evaluate") != std::string::npos);
  query.quality_evidence = "x";
  query.evidence = quality_of_store(path.string());  // measured on this very model: no proxy
  for (const auto& p : pareto(path, query)) REQUIRE((p.at("on_front").is_null() || p.at("recipe") == "full"));
  query.min_quality = 1.5;
  REQUIRE(sentence_of([&] { (void)pareto(path, query); }) == "min-quality is 1.5, must be from 0 to 1 (the retained share)");
}
