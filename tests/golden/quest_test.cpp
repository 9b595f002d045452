// Quest against recorded outputs of its evaluation code and of the reference of its estimation kernel's test.
#include <algorithm>

#include "reference/primitives/sparse_attention.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/retrieval/quest/pages.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

struct QuestCase {
  NamedTensor q, k, v;
  int q_heads = 0, kv_heads = 0, dim = 0;
  std::int64_t tokens = 0, page = 0;
  View<const float> query() const { return view_of(q, {q_heads, 1, dim}); }
  View<const float> keys() const { return view_of(k, {kv_heads, tokens, dim}); }
  View<const float> values() const { return view_of(v, {kv_heads, tokens, dim}); }
};

std::vector<float> page_scores(const QuestCase& c, int q_head) {
  std::vector<float> scores;
  for (std::int64_t first = 0; first < c.tokens; first += c.page) {
    const quest::Bounds b = quest::bounds_of(c.keys()[q_head / (c.q_heads / c.kv_heads)], with_tail({}, first, std::min(first + c.page, c.tokens)));
    scores.push_back(quest::page_score(c.query().row(q_head, 0), b.max, b.min));
  }
  return scores;
}

std::vector<float> sorted_at(const std::vector<float>& scores, std::span<const std::int64_t> pages) {
  std::vector<float> at;
  for (const std::int64_t j : pages) at.push_back(scores[static_cast<std::size_t>(j)]);
  std::ranges::sort(at);
  return at;
}

/// The cache's own output of the last token, the others as its prompt.
std::vector<float> run_cache(const QuestCase& c, std::int64_t budget) {
  const MethodChoice choice = parse_choice(cat("quest:dense_layers=0,last_page=python,page=", c.page, ",budget=", budget));
  const auto cache = choice.method->open(choice.row, uniform_shape(1, c.q_heads, c.kv_heads, c.dim, Dtype::f32), {});
  std::vector<std::int64_t> positions(static_cast<std::size_t>(c.tokens));
  for (std::size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<std::int64_t>(t);
  const Array no_query({c.q_heads, c.tokens - 1, c.dim});
  Array ignored({c.q_heads, c.tokens - 1, c.dim}), out({c.q_heads, 1, c.dim});
  cache->forward(0, {.q = no_query.view(), .k = c.keys().slice(1, 0, c.tokens - 1), .v = c.values().slice(1, 0, c.tokens - 1),
                     .positions = {positions.data(), {c.tokens - 1}}}, ignored.view());
  cache->end_prefill();
  cache->forward(0, {.q = c.query(), .k = c.keys().slice(1, c.tokens - 1, 1), .v = c.values().slice(1, c.tokens - 1, 1),
                     .positions = {positions.data() + c.tokens - 1, {1}}}, out.view());
  return out.values();
}

}  // namespace

TEST_CASE("page bounds, chosen pages and outputs agree with the evaluation code", "[golden]") {
  int checked = 0;
  for (const GoldenCase& golden : golden_cases("quest")) {
    if (!golden.has("page_scores")) continue;
    CAPTURE(golden.name());
    QuestCase c{.q = golden.floats("q"), .k = golden.floats("k"), .v = golden.floats("v"), .q_heads = golden.parameter<int>("q_heads"),
           .kv_heads = golden.parameter<int>("kv_heads"), .dim = golden.parameter<int>("head_dim"),
           .tokens = golden.parameter<std::int64_t>("tokens"), .page = golden.parameter<std::int64_t>("chunk_size")};
    const auto budget = golden.parameter<std::int64_t>("token_budget");
    const LayerClass layer = uniform_shape(1, c.q_heads, c.kv_heads, c.dim, Dtype::f32).classes.front();
    const IntTensor theirs = golden.integers("pages");
    const std::int64_t width = theirs.dims.back();
    std::vector<float> scores, out(static_cast<std::size_t>(c.q_heads * c.dim));
    std::vector<std::int64_t> pages;
    bool untied = true;
    for (int h = 0; h < c.q_heads; ++h) {
      const std::vector<float> mine = page_scores(c, h);
      scores.insert(scores.end(), mine.begin(), mine.end());
      const Slots chosen = quest::choose_pages(quest::LastPage::python, mine, quest::page_capacity(quest::LastPage::python, budget, c.page));
      REQUIRE(static_cast<std::int64_t>(chosen.size()) == width);
      pages.insert(pages.end(), chosen.begin(), chosen.end());
      // Exact ties are broken arbitrarily there: the kept scores agree, and what follows is fed their pages.
      const std::span<const std::int64_t> given = std::span(theirs.values).subspan(static_cast<std::size_t>(h * width), static_cast<std::size_t>(width));
      CHECK(sorted_at(mine, chosen) == sorted_at(mine, given));
      untied = untied && std::ranges::equal(chosen, given);
      Slots rows;
      for (const std::int64_t j : given) rows = with_tail(std::move(rows), j * c.page, std::min((j + 1) * c.page, c.tokens));
      attend_listed(layer, c.query().row(h, 0), c.keys()[h / (c.q_heads / c.kv_heads)], c.values()[h / (c.q_heads / c.kv_heads)], rows, std::nullopt,
                    std::span(out).subspan(static_cast<std::size_t>(h * c.dim), static_cast<std::size_t>(c.dim)));
    }
    check_bound(golden, "page_scores", scores);
    check_bound(golden, "out", out);
    if (untied) {
      check_exact(golden, "pages", pages);
      check_bound(golden, "out", run_cache(c, budget));
    } else {
      CHECK(golden.selection_margin().value_or(1) == 0);
    }
    ++checked;
  }
  REQUIRE(checked >= 3);
}

TEST_CASE("bounds of all pages but the last agree with the estimation reference", "[golden]") {
  int checked = 0;
  for (const GoldenCase& golden : golden_cases("quest")) {
    if (!golden.has("bounds")) continue;
    CAPTURE(golden.name());
    const int heads = golden.parameter<int>("heads");
    const QuestCase c{.q = golden.floats("q"), .k = golden.floats("k"), .v = {}, .q_heads = heads, .kv_heads = heads,
                 .dim = golden.parameter<int>("head_dim"), .tokens = golden.parameter<std::int64_t>("tokens"),
                 .page = golden.parameter<std::int64_t>("page_size")};
    std::vector<float> bounds;
    for (int h = 0; h < heads; ++h) {
      const std::vector<float> all = page_scores(c, h);
      bounds.insert(bounds.end(), all.begin(), all.end() - 1);
    }
    check_bound(golden, "bounds", bounds);
    ++checked;
  }
  REQUIRE(checked >= 2);
}
