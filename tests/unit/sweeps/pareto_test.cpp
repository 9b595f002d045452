#include "sweeps/pareto.hpp"

#include <random>

#include "sweeps/runner.hpp"
#include "sweeps/summary.hpp"
#include "sweeps/where.hpp"
#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;
using namespace kvatlas::sweep::testing;

TEST_CASE("the front is what brute force leaves", "[unit]") {
  const unsigned seed = 7;
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::pair<double, double>> points(std::uniform_int_distribution<std::size_t>(0, 40)(random));
    std::uniform_int_distribution<int> value(0, 9);  // coarse, so that ties occur
    for (auto& p : points) p = {value(random), value(random)};
    for (const bool x_higher : {false, true})
      for (const bool y_higher : {false, true}) {
        const auto better = [](double a, double b, bool higher) { return higher ? a > b : a < b; };
        std::vector<std::size_t> expected;
        for (std::size_t i = 0; i < points.size(); ++i) {
          bool beaten = false;
          for (const auto& q : points) {
            const bool no_worse = !better(points[i].first, q.first, x_higher) && !better(points[i].second, q.second, y_higher);
            beaten = beaten || (no_worse && (better(q.first, points[i].first, x_higher) || better(q.second, points[i].second, y_higher)));
          }
          if (!beaten) expected.push_back(i);
        }
        REQUIRE(pareto_front(points, x_higher, y_higher) == expected);
      }
  }
}

TEST_CASE("a front is asked by name and restricted by conditions", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(small_spec(), "s"), path);
  const auto front = pareto(path, {.x = "step_ms", .y = "tokens_per_s", .where = "gpu=h100-sxm,context>=4K and recipe=full"});
  REQUIRE_FALSE(front.empty());
  double last = -1;
  for (const auto& p : front) {
    REQUIRE(p.at("gpu") == "h100-sxm");
    REQUIRE(p.at("recipe") == "full");
    REQUIRE(p.at("context").get<int>() >= 4096);
    REQUIRE(p.at("on_front") == true);
    REQUIRE(p.at("provenance") == "computed");
    REQUIRE(p.at("energy_provenance") == "assumed");
    REQUIRE(p.at("step_ms").get<double>() > last);
    last = p.at("step_ms").get<double>();
  }
  const auto all = select_points(path, "gpu=h100-sxm,context>=4K and recipe=full,fits=1", 1000);
  std::vector<std::pair<double, double>> values;
  for (const auto& p : all) values.emplace_back(p.at("step_ms").get<double>(), p.at("tokens_per_s").get<double>());
  REQUIRE(pareto_front(values, false, true).size() == front.size());
}

TEST_CASE("a changed GPU stands beside the real one, and names are resolved as elsewhere", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(R"({"models":["llama-3.2-1b"],"gpus":["h100-sxm","h100-sxm:hbm_bandwidth=6.7TB/s"],"methods":["full"],"contexts":["1K","4K"],"batches":[1,2,3]})", "s"), path);
  REQUIRE(select_points(path, "gpu=h100-sxm", 100).size() == 6);
  REQUIRE(select_points(path, "gpu=H100-SXM-80GB,context=4K", 100).size() == 3);
  const auto changed = select_points(path, "gpu=H100-SXM-80GB:hbm_bandwidth=6700GB/s", 100);
  REQUIRE(changed.size() == 6);
  for (const auto& p : changed) REQUIRE(p.at("gpu") == sim::canonical(sim::parse_gpu("h100-sxm:hbm_bandwidth=6.7TB/s")));
  REQUIRE(select_points(path, "gpu!=h100-sxm", 100).size() == 6);
  REQUIRE(select_points(path, "", 100)[0].at("model") == "llama-3.2-1b");
  const StoreSummary s = summarize(path);
  REQUIRE(s.pairs.size() == 2);
  REQUIRE(s.pairs[0].points == 6);
  REQUIRE(s.pairs[1].plain->tokens_per_s > s.pairs[0].plain->tokens_per_s);

  const auto refused = [&](const char* where) { return sentence_of([&] { select_points(path, where, 1); }); };
  REQUIRE(refused("gpu=rtx-4090").find("where: \"rtx-4090\": unknown GPU in this store; ") == 0);
  REQUIRE(refused("gpu=h100-sxn").find("where: ") == 0);
  REQUIRE(refused("gpu=h100-sxn").find("did you mean \"h100-sxm\"?") != std::string::npos);
  REQUIRE(refused("model=llama-3.2-1c") == "where: \"llama-3.2-1c\": unknown model in this store; did you mean \"llama-3.2-1b\"?");
  REQUIRE(refused("model=llama-2-7b").find("where: \"llama-2-7b\": unknown model in this store; ") == 0);
  REQUIRE(refused("method=kivy").find("where: \"kivy\": unknown method; did you mean \"kivi\"?") == 0);
  REQUIRE(refused("recipe=kivi:bitz=2").find("where: ") == 0);
  REQUIRE(refused("bound_by=memry") == "where: \"memry\": unknown bound; did you mean \"memory\"?");
  REQUIRE(refused("plan=idal") == "where: \"idal\": unknown plan in this store; did you mean \"ideal\"?");
  REQUIRE(select_points(path, "method=kivi", 1).empty());
}

TEST_CASE("two models of one slug are told apart", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(small_spec("1024", "[1]"), "s"), path);
  {
    Database db(path, Database::Mode::write);
    db.exec("INSERT INTO models(identity, slug, name, source, record) VALUES('llama-3.2-1b#1', 'llama-3.2-1b', 'n', 's', '{}');"
            "UPDATE configurations SET model = (SELECT id FROM models WHERE identity = 'llama-3.2-1b#1') WHERE id = 1");
  }
  REQUIRE(select_points(path, "model=llama-3.2-1b", 100).size() == 7);
  const auto one = select_points(path, "model=llama-3.2-1b#1", 100);
  REQUIRE(one.size() == 1);
  REQUIRE(one[0].at("model") == "llama-3.2-1b#1");
}

TEST_CASE("conditions are read and refused with sentences", "[unit]") {
  const auto two = parse_where(" gpu = h100-sxm , context >= 32K ");
  REQUIRE(two.size() == 2);
  REQUIRE(std::get<std::string>(two[0].value) == "h100-sxm");
  REQUIRE(std::get<double>(two[1].value) == 32768);
  const auto recipe = parse_where("recipe=kivi:bits=4,group_size=32,batch<=8");
  REQUIRE(recipe.size() == 2);
  REQUIRE(std::get<std::string>(recipe[0].value) == "kivi:bits=4,group_size=32");
  const auto changed = parse_where("gpu=h100-sxm:hbm_bandwidth=6.7TB/s,l2=100MiB,batch<=8,recipe='kivi:bits=4,batch=2' and fits=1");
  REQUIRE(changed.size() == 4);
  REQUIRE(std::get<std::string>(changed[0].value) == "h100-sxm:hbm_bandwidth=6.7TB/s,l2=100MiB");
  REQUIRE(std::get<std::string>(changed[2].value) == "kivi:bits=4,batch=2");
  REQUIRE(parse_where("").empty());
  REQUIRE(where_sql(two) == " WHERE g.identity = ? AND p.context >= ?");
  REQUIRE(sentence_of([] { parse_where("contxt>5"); }) == "where: \"contxt\": unknown column; did you mean \"context\"?");
  REQUIRE(sentence_of([] { parse_where("context"); }) == "where: \"context\" is no condition, must be COLUMN OP VALUE with OP one of = != < <= > >=");
  REQUIRE(sentence_of([] { parse_where("context>many"); }) == "where: context is compared with \"many\", must be a number or a size like 32K");
  REQUIRE(sentence_of([] { parse_where("gpu<h100"); }) == "where: gpu is a text, must be compared by = or !=");
  REQUIRE(sentence_of([] { parse_where("1=1; DROP TABLE models"); }).find("where: \"1\": unknown column") == 0);
  REQUIRE(sentence_of([] { pareto("x", {.x = "gpu", .y = "step_ms", .where = ""}); }).find("x is \"gpu\", must be a figure of which more or less is better: ") == 0);
}
