#include "reference/primitives/attention.hpp"

#include <cmath>
#include <vector>

#include "core/arith.hpp"
#include "core/span_rule.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;

namespace {

struct Problem {
  std::vector<float> x;
  Array v;
};

Problem problem(std::int64_t n, std::int64_t dim, std::uint64_t seed) {
  test::Random random(seed);
  Problem p{.x = {}, .v = Array({n, dim})};
  for (std::int64_t t = 0; t < n; ++t) p.x.push_back(4 * random.normal());
  for (float& f : p.v.values()) f = random.normal();
  return p;
}

/// Softmax attention in long double, no split: the independent judge.
std::vector<double> judge(const Problem& p) {
  long double sum = 0, m = -1e30L;
  for (const float x : p.x) m = std::max(m, static_cast<long double>(x));
  std::vector<long double> acc(static_cast<std::size_t>(p.v.view().dim(1)), 0.0L);
  for (std::size_t t = 0; t < p.x.size(); ++t) {
    const long double w = std::exp2(static_cast<long double>(p.x[t]) - m);
    sum += w;
    for (std::size_t c = 0; c < acc.size(); ++c) acc[c] += w * static_cast<long double>(p.v.view()(static_cast<std::int64_t>(t), static_cast<std::int64_t>(c)));
  }
  std::vector<double> out;
  for (const long double a : acc) out.push_back(static_cast<double>(a / sum));
  return out;
}

}  // namespace

TEST_CASE("a span is a sixteenth of the context in whole tiles, 256 to 4,096 tokens", "[unit]") {
  CHECK(span_length(1) == 256);
  CHECK(span_length(4096) == 256);
  CHECK(span_length(4097) == 320);
  CHECK(span_length(32768) == 2048);
  CHECK(span_length(65536) == 4096);
  CHECK(span_length(1 << 20) == 4096);
  CHECK(span_count(0) == 0);
  CHECK(span_count(256) == 1);
  CHECK(span_count(257) == 2);
  CHECK(span_count(4097) == 13);
}

TEST_CASE("split attention equals long double attention to float accuracy at every border of tiles and spans", "[unit]") {
  for (const std::int64_t n : {1, 2, 7, 8, 9, 63, 64, 65, 255, 256, 257, 513, 1000, 4097, 5000}) {
    const Problem p = problem(n, 40, static_cast<std::uint64_t>(n));
    const SoftmaxPart part = softmax_part(p.x, p.v.view());
    std::vector<float> out(40);
    finish(part, out);
    const auto expected = judge(p);
    for (std::size_t c = 0; c < out.size(); ++c) REQUIRE(std::abs(out[c] - expected[c]) < 2e-6);
    std::vector<float> w(p.x.size());
    softmax_weights(p.x, part, w);
    double sum = 0;
    for (const float f : w) sum += f;
    REQUIRE(std::abs(sum - 1) < 1e-5);
  }
}

TEST_CASE("by hand: two equal logits average their values, a dominant one wins", "[unit]") {
  Array v({2, 1});
  v.values() = {1.0F, 3.0F};
  std::vector<float> out(1);
  finish(softmax_part(std::vector<float>{5.0F, 5.0F}, v.view()), out);
  CHECK(out[0] == 2.0F);
  finish(softmax_part(std::vector<float>{200.0F, 0.0F}, v.view()), out);
  CHECK(out[0] == 1.0F);
  finish(softmax_part(std::vector<float>{1.0F, 0.0F}, v.view()), out);  // weights 2/3, 1/3
  CHECK(out[0] == Approx(5.0 / 3.0).epsilon(1e-7));
}

TEST_CASE("merging parts left to right is what the split does", "[unit]") {
  const Problem p = problem(700, 16, 3);
  const SoftmaxPart whole = softmax_part(p.x, p.v.view());
  SoftmaxPart merged = softmax_part(std::span(p.x).first(256), View<const float>(p.v.view()).slice(0, 0, 256));
  merge_into(merged, softmax_part(std::span(p.x).subspan(256, 256), View<const float>(p.v.view()).slice(0, 256, 256)));
  merge_into(merged, softmax_part(std::span(p.x).subspan(512), View<const float>(p.v.view()).slice(0, 512, 188)));
  CHECK(whole.sum == merged.sum);
  CHECK(whole.acc == merged.acc);
  SoftmaxPart nothing{.max = -num::infinity(), .sum = 0, .acc = std::vector<float>(16)};
  merge_into(merged, nothing);
  CHECK(whole.acc == merged.acc);
  merge_into(nothing, merged);
  CHECK(whole.acc == nothing.acc);
}

TEST_CASE("a learned sink takes its share of the mass and adds no value", "[unit]") {
  Array v({1, 1});
  v.values() = {8.0F};
  SoftmaxPart part = softmax_part(std::vector<float>{0.0F}, v.view());
  add_sink(part, 0.0F);
  std::vector<float> out(1);
  finish(part, out);
  CHECK(out[0] == 4.0F);
  add_sink(part, 1.0F);  // masses 1, 1, 2
  finish(part, out);
  CHECK(out[0] == 2.0F);
}

TEST_CASE("no entry gives zeros", "[unit]") {
  Array v({0, 3});
  std::vector<float> out{1, 2, 3};
  finish(softmax_part({}, v.view()), out);
  CHECK(out == std::vector<float>{0, 0, 0});
}
