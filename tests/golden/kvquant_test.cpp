// KVQuant against the released simulation: nearest codes and decoded values of given tables, thresholds and fits of the
// calibration. Outlier lists of the deployment are another rule than the simulation's masks and are not compared.
#include <algorithm>
#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/primitives/group_quantizer.hpp"
#include "reference/quantization/kvquant/coder.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// Codes by channel (thresholds given) or by token (range recorded); outliers were set to 0 before they were coded, after
/// normalisation.
void check_table(const GoldenCase& golden) {
  const std::int64_t tokens = golden.parameter<int>("tokens"), hidden = golden.parameter<int>("kv_heads") * golden.parameter<int>("head_dim");
  const NamedTensor x = golden.floats("x"), lut = golden.floats("lut");
  const bool by_token = golden.parameter<int>("qchannel") == -1;
  std::vector<float> range, offset;
  if (by_token) {
    range = golden.floats("range").values;
    offset = golden.floats("offset").values;
  } else {
    const std::vector<float> upper = golden.floats("upper").values, lower = golden.floats("lower").values;
    for (std::size_t c = 0; c < upper.size(); ++c) {
      range.push_back((upper[c] - lower[c]) / 2.0F);
      offset.push_back((upper[c] + lower[c]) / 2.0F);
    }
  }
  std::vector<std::int64_t> mask(x.values.size(), 0), codes;
  if (golden.has("outlier_mask")) mask = golden.integers("outlier_mask").values;
  float norm_scale = 1, norm_offset = 0;
  if (golden.has("qnorm")) {
    norm_scale = golden.floats("qnorm").values[0];
    norm_offset = golden.floats("qnorm").values[1];
  }
  std::vector<float> decoded;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t c = 0; c < hidden; ++c) {
      const auto at = static_cast<std::size_t>(t * hidden + c), of = static_cast<std::size_t>(by_token ? t : c);
      const std::uint8_t code = kvquant_nuq::nearest_entry(lut.values, mask[at] == 0 ? (x.values[at] - offset[of]) / range[of] : 0.0F);
      codes.push_back(code);
      const float given = golden.name().starts_with("nf_") ? num::round_to(Dtype::f16, lut.values[code]) : lut.values[code];  // released: decoded from an fp16 table
      const float entry = golden.has("qnorm") ? given * norm_scale + norm_offset : given;
      decoded.push_back(mask[at] != 0 ? x.values[at] : entry * range[of] + offset[of]);
    }
  check_exact(golden, "codes", codes);
  if (golden.has("reconstruction")) check_bound(golden, "reconstruction", decoded, {.atol = 1e-6, .rtol = 1e-6});
  if (golden.name().starts_with("nf_")) {
    const std::vector<float> ours = kvquant_nuq::normal_codebook(golden.parameter<int>("bits"));
    check_bound(golden, "lut", ours, {.atol = 2e-6});
  }
}

/// Thresholds of every channel; the fitted table must be as good as the recorded one on the same points.
void check_calibration(const GoldenCase& golden) {
  const std::int64_t all = golden.parameter<int>("tokens"), hidden = golden.parameter<int>("kv_heads") * golden.parameter<int>("head_dim");
  const NamedTensor x = golden.floats("x");
  const std::vector<std::int64_t> excluded = golden.integers("excluded").values;
  const double share = (1 - golden.parameter<double>("sparsity_threshold")) / 2;
  std::vector<float> upper, lower, points, weights;
  std::vector<double> ranges;
  for (std::int64_t c = 0; c < hidden; ++c) {
    std::vector<float> channel;
    for (std::int64_t t = 0; t < all; ++t) channel.push_back(x.values[static_cast<std::size_t>(t * hidden + c)]);
    std::vector<float> sorted = channel;
    std::ranges::sort(sorted);
    const double high = kvquant_nuq::percentile(sorted, 1 - share), low = kvquant_nuq::percentile(sorted, share);
    upper.push_back(static_cast<float>(high));
    lower.push_back(static_cast<float>(low));
    for (std::int64_t t = 0; t < all; ++t) {
      const auto at = static_cast<std::size_t>(t * hidden + c);
      if (excluded[at] != 0) continue;
      points.push_back(static_cast<float>((static_cast<double>(channel[static_cast<std::size_t>(t)]) - (high + low) / 2) / ((high - low) / 2)));
      if (golden.has("fisher") && golden.parameter<bool>("fisher_weights")) weights.push_back(golden.floats("fisher").values[at]);
    }
  }
  check_bound(golden, "upper", upper, {.atol = 1e-6, .rtol = 1e-6});
  check_bound(golden, "lower", lower, {.atol = 1e-6, .rtol = 1e-6});
  const kvquant_nuq::CodebookFit fit = kvquant_nuq::fit_codebook(points, weights, 1 << golden.parameter<int>("bits"), {});
  const double theirs = static_cast<double>(golden.floats("inertia").values[0]);
  CAPTURE(fit.inertia, theirs);
  CHECK(fit.inertia <= 1.02 * theirs);
  GoldenTable::row(golden.slug(), golden.name(), "inertia", "bound", fit.inertia / theirs - 1, 0.02, fit.inertia <= 1.02 * theirs);
}

}  // namespace

TEST_CASE("KVQuant codes by given tables, and calibrates thresholds and tables, as the released simulation does", "[golden]") {
  int compared = 0;
  for (const GoldenCase& golden : golden_cases("kvquant")) {
    CAPTURE(golden.name());
    if (golden.name().starts_with("zp_") || golden.name().starts_with("layer_")) continue;  // other number types; whole layers
    ++compared;
    if (golden.name().starts_with("calibrate_")) check_calibration(golden);
    else check_table(golden);
  }
  REQUIRE(compared >= 4);
}
