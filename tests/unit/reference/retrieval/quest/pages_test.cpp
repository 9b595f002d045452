#include "reference/retrieval/quest/pages.hpp"

#include "core/arith.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::quest;
using kvatlas::test::Random;

TEST_CASE("the worked pages of the paper's rule score 1 and 4", "[unit]") {
  const std::vector<float> keys{1, 0, 0, 1, -1, -1, 2, 0}, q{1, -2};
  const View<const float> k(keys.data(), {4, 2});
  const Bounds first = bounds_of(k, Slots{0, 1}), second = bounds_of(k, Slots{2, 3});
  REQUIRE(first.max == std::vector<float>{1, 1});
  REQUIRE(first.min == std::vector<float>{0, 0});
  REQUIRE(second.max == std::vector<float>{2, 0});
  REQUIRE(second.min == std::vector<float>{-1, -1});
  REQUIRE(page_score(q, first.max, first.min) == 1.0F);
  REQUIRE(page_score(q, second.max, second.min) == 4.0F);
}

TEST_CASE("a page's score bounds q.k of each of its keys as rounded, and equals it for a page of one key", "[unit]") {
  Random random(11);
  for (const std::int64_t dim : {1, 3, 8, 31, 32, 33, 64, 128}) {
    Array q({1, dim}), k({40, dim});
    for (Array* a : {&q, &k})
      for (float& f : a->values()) f = random.below(20) == 0 ? 0.0F : random.normal();
    k.values()[0] = 1e-39F;
    for (std::int64_t size = 1; size <= 40; size += 3) {
      const Slots rows = with_tail({}, 0, size);
      const Bounds b = bounds_of(k.view(), rows);
      const float u = page_score(q.view().row(0), b.max, b.min);
      for (const std::int64_t t : rows) REQUIRE(u >= num::qk_dot(q.view().row(0), k.view().row(t)));
      if (size == 1) REQUIRE(u == num::qk_dot(q.view().row(0), k.view().row(0)));
    }
  }
}

TEST_CASE("the system's rule attends the open page unscored, Python's scores it and takes at least three", "[unit]") {
  REQUIRE(page_capacity(LastPage::system, 47, 16) == 2);
  REQUIRE(page_capacity(LastPage::python, 47, 16) == 3);
  REQUIRE(page_capacity(LastPage::python, 64, 16) == 4);
  const std::vector<float> scores{5, 1, 5, 7, -100};
  REQUIRE(choose_pages(LastPage::system, scores, 1) == Slots{4});
  REQUIRE(choose_pages(LastPage::system, scores, 3) == Slots{0, 3, 4});  // of equal scores the lower page
  REQUIRE(choose_pages(LastPage::python, scores, 3) == Slots{0, 2, 3});
  REQUIRE(choose_pages(LastPage::system, scores, 9) == Slots{0, 1, 2, 3, 4});
  REQUIRE(choose_pages(LastPage::python, scores, 9) == Slots{0, 1, 2, 3, 4});
  REQUIRE(choose_pages(LastPage::system, std::vector<float>{3}, 1) == Slots{0});
}

TEST_CASE("heads of a group agree on the mean or the maximum of their scores", "[unit]") {
  const std::vector<std::vector<float>> scores{{1, 4, 0}, {3, -2, 0}};
  REQUIRE(reduce_scores(Select::mean, scores) == std::vector<float>{2, 1, 0});
  REQUIRE(reduce_scores(Select::max, scores) == std::vector<float>{3, 4, 0});
}
