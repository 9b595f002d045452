// hydragen: the merge of parts given by the official code, and full attention split at the borders of those parts.
#include "core/arith.hpp"
#include "reference/primitives/attention.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

constexpr float kLog2E = 1.44269504F;

}  // namespace

TEST_CASE("parts merged one after the other give the official merge", "[golden]") {
  for (const GoldenCase& golden : golden_cases("hydragen")) {
    CAPTURE(golden.name());
    if (!golden.has("outs") || !golden.has("lses")) continue;
    const auto parts = golden.parameter<std::vector<std::int64_t>>("parts");
    const NamedTensor outs = golden.floats("outs"), lses = golden.floats("lses");
    const std::int64_t count = static_cast<std::int64_t>(parts.size());
    const std::int64_t dim = outs.dims.back(), rows = static_cast<std::int64_t>(lses.values.size()) / count;
    std::vector<float> merged(static_cast<std::size_t>(rows * dim));
    for (std::int64_t r = 0; r < rows; ++r) {
      SoftmaxPart total{.max = 0, .sum = 0, .acc = std::vector<float>(static_cast<std::size_t>(dim))};
      for (std::int64_t p = 0; p < count; ++p) {
        // An output with its log-sum-exp is a state with sum 1; -inf marks a part without entries.
        const float lse = lses.values[static_cast<std::size_t>(p * rows + r)];
        const auto first = outs.values.begin() + static_cast<std::ptrdiff_t>((p * rows + r) * dim);
        merge_into(total, {.max = lse * kLog2E, .sum = lse == -num::infinity() ? 0.0F : 1.0F, .acc = {first, first + dim}});
      }
      finish(total, std::span(merged).subspan(static_cast<std::size_t>(r * dim), static_cast<std::size_t>(dim)));
    }
    check_bound(golden, "merged", merged);
  }
}

TEST_CASE("attention split at the borders of the parts is the official attention over all tokens", "[golden]") {
  int compared = 0;
  for (const GoldenCase& golden : golden_cases("hydragen")) {
    if (!golden.has("q") || !golden.has("full")) continue;
    CAPTURE(golden.name());
    const auto parts = golden.parameter<std::vector<std::int64_t>>("parts");
    const std::int64_t batch = golden.parameter<std::int64_t>("batch"), heads = golden.parameter<std::int64_t>("heads"), dim = golden.parameter<std::int64_t>("head_dim");
    const NamedTensor q = golden.floats("q"), k = golden.floats("k"), v = golden.floats("v");
    const std::int64_t tokens = k.dims[1], queries = q.dims[1];
    const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = static_cast<int>(dim), .v_dim = static_cast<int>(dim)};
    std::vector<float> out(q.values.size());
    const auto at = [&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t n) {
      return static_cast<std::size_t>(((b * n + t) * heads + h) * dim);
    };
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t i = 0; i < queries; ++i) {
          SoftmaxPart total{.max = 0, .sum = 0, .acc = std::vector<float>(static_cast<std::size_t>(dim))};
          std::int64_t first = 0;
          for (const std::int64_t n : parts) {
            Array keys({n, dim}), values({n, dim});
            for (std::int64_t t = 0; t < n; ++t) {
              std::copy_n(k.values.begin() + static_cast<std::ptrdiff_t>(at(b, first + t, h, tokens)), dim, keys.view().row(t).begin());
              std::copy_n(v.values.begin() + static_cast<std::ptrdiff_t>(at(b, first + t, h, tokens)), dim, values.view().row(t).begin());
            }
            std::vector<float> x(static_cast<std::size_t>(n));
            if (n > 0) logits(std::span(q.values).subspan(at(b, i, h, queries), static_cast<std::size_t>(dim)), keys.view(), logit_scale(c), x);
            merge_into(total, softmax_part(x, values.view()));
            first += n;
          }
          REQUIRE(first == tokens);
          finish(total, std::span(out).subspan(at(b, i, h, queries), static_cast<std::size_t>(dim)));
        }
    check_bound(golden, "full", out);
    ++compared;
  }
  CHECK(compared >= 2);
}
