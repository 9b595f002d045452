// PolarQuant of rotary pairs against the released code: angles, radii, ranges, codes, and the table kernel's scores.
#include <cmath>

#include "reference/quantization/polarquant_pairs/polar_group.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// Codes differ by at most one, and only where the quotient is within the library's rounding of an integer.
void check_codes(const GoldenCase& golden, const std::string& array, const std::vector<std::uint8_t>& ours, const std::vector<bool>& constant,
                 std::size_t pairs) {
  const std::vector<std::int64_t> theirs = golden.integers(array).values;
  REQUIRE(theirs.size() <= ours.size());
  std::size_t other = 0;
  for (std::size_t i = 0; i < theirs.size(); ++i) {
    if (constant[i]) continue;  // 0/0 in the released code
    const std::int64_t difference = std::abs(theirs[i] - std::int64_t{ours[i]});
    REQUIRE(difference <= 1);
    other += static_cast<std::size_t>(difference);
  }
  CAPTURE(array, other, pairs);
  CHECK(static_cast<double>(other) <= 2e-3 * static_cast<double>(theirs.size()));
}

void check_pairs(const GoldenCase& golden) {
  const NamedTensor k = golden.floats("k");
  const IntTensor angle_code = golden.integers("angle_code");
  const int heads = golden.parameter<int>("kv_heads"), dim = golden.parameter<int>("head_dim");
  const int angle_bits = golden.parameter<int>("angle_bits"), radius_bits = golden.parameter<int>("radius_bits");
  const Dtype work = golden.parameter<std::string>("dtype") == "torch.float16" ? Dtype::f16 : Dtype::f32;
  const std::int64_t g = golden.parameter<int>("group_tokens"), groups = angle_code.dims[2], tokens = k.dims[2];
  const auto pairs = static_cast<std::size_t>(dim / 2);
  std::vector<std::uint8_t> angles, radii;
  std::vector<float> angle_scale, angle_min, radius_scale, radius_min, scores;
  std::vector<bool> flat_angle, flat_radius;
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t b = 0; b < groups; ++b) {
      const polar::Group group = polar::encode(view_of(k, {heads, tokens, dim})[h].slice(0, b * g, g), angle_bits, radius_bits, work, {});
      angles.insert(angles.end(), group.angle_codes.begin(), group.angle_codes.end());
      radii.insert(radii.end(), group.radius_codes.begin(), group.radius_codes.end());
      for (std::size_t i = 0; i < group.angle_codes.size(); ++i) {
        flat_angle.push_back(group.angles[i % pairs].scale == 0.0F);
        flat_radius.push_back(group.radii[i % pairs].scale == 0.0F);
      }
      for (std::size_t j = 0; j < pairs; ++j) {
        angle_scale.push_back(group.angles[j].scale);
        angle_min.push_back(group.angles[j].low);
        radius_scale.push_back(group.radii[j].scale);
        radius_min.push_back(group.radii[j].low);
      }
    }
  check_codes(golden, "angle_code", angles, flat_angle, pairs);
  check_codes(golden, "radius_code", radii, flat_radius, pairs);
  const double relative = work == Dtype::f16 ? 1.0e-3 : 2e-6;
  const double absolute = work == Dtype::f16 ? 1e-3 : 1e-6;  // a range is a difference
  check_bound(golden, "angle_min", angle_min, {.atol = absolute, .rtol = relative});
  check_bound(golden, "radius_min", radius_min, {.atol = 0, .rtol = relative});
  check_bound(golden, "angle_scale", angle_scale, {.atol = absolute, .rtol = relative});
  check_bound(golden, "radius_scale", radius_scale, {.atol = absolute, .rtol = relative});
}

}  // namespace

TEST_CASE("polarquant_pairs agrees with the released code", "[golden]") {
  for (const GoldenCase& golden : golden_cases("polarquant_pairs")) {
    CAPTURE(golden.name());
    check_pairs(golden);
  }
}
