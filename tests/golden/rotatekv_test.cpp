// RotateKV against the released simulation: scales, zero points and codes of its quantizer. With the 3-bit case the released
// code has 8 steps of a scale.
#include "core/errors.hpp"
#include "reference/primitives/group_quantizer.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("RotateKV scales, shifts and codes groups of a token as the released simulation does", "[golden]") {
  int compared = 0;
  for (const GoldenCase& golden : golden_cases("rotatekv")) {
    CAPTURE(golden.name());
    if (!golden.has("codes") || golden.name().starts_with("degenerate")) continue;  // layers; NaN there, the minimum here
    ++compared;
    const int bits = golden.parameter<int>("bits"), group = golden.parameter<int>("group_channels");
    const GroupQuantizer q{.bits = bits, .group_size = group, .work = Dtype::f32, .meta = MetaType::f32, .scheme = QuantScheme::integer_zero,
                           .levels = bits * bits - 1, .clip = static_cast<float>(golden.parameter<double>("clip_ratio"))};
    const std::vector<float> x = golden.floats("x").values;
    std::vector<float> scales, zeros, back;
    std::vector<std::int64_t> codes;
    std::vector<std::uint8_t> of_group(static_cast<std::size_t>(group));
    for (std::size_t first = 0; first < x.size(); first += of_group.size()) {
      const GroupQuantizer::Meta m = q.encode(std::span(x).subspan(first, of_group.size()), of_group);
      scales.push_back(m.scale);
      zeros.push_back(m.zero);
      for (const std::uint8_t c : of_group) {
        codes.push_back(c);
        back.push_back(q.decode(c, m));
      }
    }
    check_exact(golden, "scale", scales);
    check_exact(golden, "zero", zeros);
    check_exact(golden, "codes", codes);
    if (golden.has("out")) check_exact(golden, "out", back);
  }
  REQUIRE(compared >= 3);
}
