// QJL against the released sketch: outlier channels, sign bits, norms, and the scores of the released kernel.
#include <cmath>

#include "reference/quantization/qjl/sketch.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::vector<std::int64_t> packed(const std::vector<std::uint8_t>& bits) {
  std::vector<std::int64_t> bytes(bits.size() / 8);
  for (std::size_t i = 0; i < bits.size(); ++i) bytes[i / 8] |= std::int64_t{bits[i]} << (i % 8);
  return bytes;
}

void check_qjl(const GoldenCase& golden, const std::string& prefix) {
  const NamedTensor k = golden.floats("k"), given = golden.floats("projection");
  const int heads = golden.parameter<int>("kv_heads"), dim = golden.parameter<int>("head_dim"), m = golden.parameter<int>("sketch_bits");
  const int m_out = golden.parameter<int>("outlier_sketch_bits"), count = golden.parameter<int>("outlier_channels");
  const std::int64_t g = golden.parameter<int>("group_tokens"), groups = golden.integers(prefix + "outlier_channels").dims[2];
  Array projections({m, dim});
  for (int i = 0; i < m; ++i)
    for (int c = 0; c < dim; ++c) projections.view()(i, c) = given.values[static_cast<std::size_t>(c * m + i)];
  std::vector<std::int64_t> channels, bits, outlier_bits;
  std::vector<float> norms, outlier_norms, scores;
  const std::int64_t tokens = k.dims[2];
  const View<const float> keys = view_of(k, {heads, tokens, dim});
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t b = 0; b < groups; ++b) {
      const qjl::Sketch s = qjl::encode(keys[h].slice(0, b * g, g), projections.view(), m_out, count);
      channels.insert(channels.end(), s.outliers.begin(), s.outliers.end());
      const auto key_bytes = packed(s.bits), outlier_bytes = packed(s.outlier_bits);
      bits.insert(bits.end(), key_bytes.begin(), key_bytes.end());
      outlier_bits.insert(outlier_bits.end(), outlier_bytes.begin(), outlier_bytes.end());
      norms.insert(norms.end(), s.norms.begin(), s.norms.end());
      outlier_norms.insert(outlier_norms.end(), s.outlier_norms.begin(), s.outlier_norms.end());
      if (!golden.has("scores")) continue;
      Array decoded({g, dim});
      qjl::decode(s, projections.view(), m_out, decoded.view());
      const NamedTensor q = golden.floats("q");
      for (std::int64_t t = 0; t < g; ++t) {
        double score = 0;
        for (int c = 0; c < dim; ++c)
          score += static_cast<double>(q.values[static_cast<std::size_t>(h * dim + c)]) * static_cast<double>(decoded.view()(t, c));
        scores.push_back(static_cast<float>(score));
      }
    }
  check_set(golden, prefix + "outlier_channels", channels);
  // Bits of projections near 0 depend on the order of a sum.
  const auto accept = [&](std::vector<std::int64_t>& ours, const std::string& array, const std::string& near) {
    if (!golden.has(near)) return;
    const std::vector<std::int64_t> theirs = golden.integers(array).values, mask = golden.integers(near).values;
    REQUIRE(theirs.size() == ours.size());
    for (std::size_t i = 0; i < ours.size(); ++i) ours[i] = (ours[i] & ~mask[i]) | (theirs[i] & mask[i]);
  };
  accept(bits, prefix + "key_bits", "near_zero_inlier");
  accept(outlier_bits, prefix + "outlier_bits", "near_zero_outlier");
  check_exact(golden, prefix + "key_bits", bits);
  check_exact(golden, prefix + "outlier_bits", outlier_bits);
  check_bound(golden, prefix + "key_norm", norms, {.atol = 1e-30, .rtol = 1e-6});
  check_bound(golden, prefix + "outlier_norm", outlier_norms, {.atol = 1e-30, .rtol = 1e-6});
  if (!golden.has("scores")) return;
  const NamedTensor theirs = golden.floats("scores");
  const std::int64_t row = theirs.dims.back(), coded = groups * g;
  float largest = 0, error = 0;
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t t = 0; t < coded; ++t) {
      const float score = theirs.values[static_cast<std::size_t>(h * row + t)];
      largest = std::max(largest, std::fabs(score));
      error = std::max(error, std::fabs(score - scores[static_cast<std::size_t>(h * coded + t)]));
    }
  CHECK(error <= 1e-3F * largest);
}

}  // namespace

TEST_CASE("qjl agrees with the released sketch", "[golden]") {
  for (const GoldenCase& golden : golden_cases("qjl")) {
    CAPTURE(golden.name());
    check_qjl(golden, golden.has("prefill_outlier_channels") ? "prefill_" : "");
  }
}
