// VidKV against the released code: two-level, three-level and four-level groups, the choice of channels and the transform.
#include <algorithm>
#include <cmath>

#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/quantization/vidkv/codes.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

bool near(float ours, float theirs, Dtype dtype) {
  const float unit = dtype == Dtype::f16 ? std::fabs(theirs) * 0x1p-10F : std::fabs(theirs) * 1e-6F;
  return std::fabs(ours - theirs) <= unit;
}

/// Groups of one array [1, heads, channels, tokens]: scales to a unit, codes wherever their own scale leaves no doubt.
void check_groups(const GoldenCase& golden) {
  const NamedTensor x = golden.floats("x"), scale = golden.floats("scale");
  const std::vector<std::int64_t> codes = golden.integers("codes").values;
  const double bits = golden.parameter<double>("bits");
  const auto g = static_cast<std::size_t>(golden.parameter<int>("group"));
  const Dtype dtype = golden.parameter<std::string>("dtype") == "torch.float16" ? Dtype::f16 : Dtype::f32;
  std::vector<float> ours;
  std::vector<std::int64_t> our_codes;
  for (std::size_t first = 0; first < x.values.size(); first += g) {
    const auto group = std::span(x.values).subspan(first, g);
    const float theirs = scale.values[first / g], s = vidkv::mean_magnitude(group, dtype);
    REQUIRE(near(s, theirs, dtype));
    ours.push_back(s);
    std::vector<std::uint8_t> c(g);
    const float threshold = num::round_to(dtype, 0.5F * theirs);
    bits == 1 ? vidkv::encode_signs(group, c) : vidkv::encode_ternary(group, threshold, c);
    our_codes.insert(our_codes.end(), c.begin(), c.end());
  }
  check_exact(golden, "codes", our_codes);
}

}  // namespace

TEST_CASE("vidkv's two and three levels agree with the released code", "[golden]") {
  int seen = 0;
  for (const GoldenCase& golden : golden_cases("vidkv")) {
    CAPTURE(golden.name());
    if (!golden.has("codes") || golden.parameter<double>("bits") == 2) continue;
    ++seen;
    check_groups(golden);
  }
  CHECK(seen > 0);
}

TEST_CASE("vidkv chooses the channels of the released code, and its real transform is theirs without the mirrored half", "[golden]") {
  int seen = 0;
  for (const GoldenCase& golden : golden_cases("vidkv")) {
    if (!golden.has("prefill_fft") || !golden.has("k")) continue;
    CAPTURE(golden.name());
    ++seen;
    const NamedTensor k = golden.floats("k"), fft = golden.floats("prefill_fft");
    const int heads = golden.parameter<int>("kv_heads"), dim = golden.parameter<int>("head_dim");
    const std::int64_t tokens = k.dims[2], coded = fft.dims[2];
    const std::vector<std::int64_t> hard = golden.integers("prefill_hard_channels").values, easy = golden.integers("prefill_easy_channels").values;
    const MethodChoice m = parse_choice("vidkv:residual_window=32");
    const LayerClass c{.q_heads = heads, .kv_heads = heads, .k_dim = dim, .v_dim = dim, .layers = {0}};
    const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f16);
    store->append(view_of(k, {heads, tokens, dim}).slice(1, 0, golden.parameter<int>("prompt_tokens")));
    std::vector<NamedBuffer> buffers;
    store->buffers("", buffers);
    std::vector<std::int64_t> marked;
    for (int ch = 0; ch < dim; ++ch)
      if ((static_cast<unsigned>(find_buffer(buffers, "channels").bytes[static_cast<std::size_t>(ch / 8)]) >> (ch % 8) & 1U) != 0) marked.push_back(ch);
    std::vector<std::int64_t> sorted = hard;
    std::sort(sorted.begin(), sorted.end());
    CHECK(marked == sorted);
    // Theirs: real and imaginary part of every frequency, the mirrored half too.
    const auto n = static_cast<std::int64_t>(easy.size());
    const vidkv::RealFourier fourier(static_cast<int>(n));
    float error = 0, largest = 0;
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t t = 0; t < coded; ++t) {
        std::vector<float> x, components(easy.size());
        for (const std::int64_t ch : easy) x.push_back(view_of(k, {heads, tokens, dim})(h, t, ch));
        fourier.forward(x, components);
        const auto theirs = view_of(fft, {heads, coded, 2 * n}).row(h, t);
        for (std::int64_t i = 0; i < n; ++i) {
          const std::int64_t frequency = (i + 1) / 2;
          const bool imaginary = i > 0 && i % 2 == 0;
          const float other = theirs[static_cast<std::size_t>(2 * frequency + (imaginary ? 1 : 0))];
          largest = std::max(largest, std::fabs(other));
          error = std::max(error, std::fabs(other - components[static_cast<std::size_t>(i)]));
        }
      }
    CHECK(error <= 1e-3F * largest);
  }
  CHECK(seen > 0);
}
