#include "sweeps/pareto.hpp"

#include <random>

#include "sweeps/runner.hpp"
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

TEST_CASE("conditions are read and refused with sentences", "[unit]") {
  const auto two = parse_where(" gpu = h100-sxm , context >= 32K ");
  REQUIRE(two.size() == 2);
  REQUIRE(std::get<std::string>(two[0].value) == "h100-sxm");
  REQUIRE(std::get<double>(two[1].value) == 32768);
  const auto recipe = parse_where("recipe=kivi:bits=4,group_size=32,batch<=8");
  REQUIRE(recipe.size() == 2);
  REQUIRE(std::get<std::string>(recipe[0].value) == "kivi:bits=4,group_size=32");
  REQUIRE(parse_where("").empty());
  REQUIRE(where_sql(two) == " WHERE g.slug = ? AND p.context >= ?");
  REQUIRE(sentence_of([] { parse_where("contxt>5"); }) == "where: \"contxt\": unknown column; did you mean \"context\"?");
  REQUIRE(sentence_of([] { parse_where("context"); }) == "where: \"context\" is no condition, must be COLUMN OP VALUE with OP one of = != < <= > >=");
  REQUIRE(sentence_of([] { parse_where("context>many"); }) == "where: context is compared with \"many\", must be a number or a size like 32K");
  REQUIRE(sentence_of([] { parse_where("gpu<h100"); }) == "where: gpu is a text, must be compared by = or !=");
  REQUIRE(sentence_of([] { parse_where("1=1; DROP TABLE models"); }).find("where: \"1\": unknown column") == 0);
  REQUIRE(sentence_of([] { pareto("x", {.x = "gpu", .y = "step_ms", .where = ""}); }).find("x is \"gpu\", must be a figure of which more or less is better: ") == 0);
}
