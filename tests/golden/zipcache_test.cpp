// ZipCache against the released code: which tokens are salient given its saliency, and codes, minima, steps and factors of
// both sets given which tokens are salient.
#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/quantization/zipcache/sets.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::vector<float> numbers(std::span<const std::byte> bytes) {
  std::vector<float> out(bytes.size() / 4);
  num::load(Dtype::f32, bytes, out);
  return out;
}

std::vector<std::int64_t> planar(std::span<const std::byte> packed, std::int64_t rows, int width, int bits) {
  std::vector<std::int64_t> out;
  const auto bytes = static_cast<std::size_t>(width * bits / 8);
  for (std::int64_t r = 0; r < rows; ++r)
    for (int i = 0; i < width; ++i)
      out.push_back(num::field_of_word(std::to_integer<std::uint32_t>(packed[static_cast<std::size_t>(r) * bytes + static_cast<std::size_t>(i) % bytes]),
                                       i / static_cast<int>(bytes), bits));
  return out;
}

void check_prefill(const GoldenCase& golden) {
  const int heads = golden.parameter<int>("kv_heads"), dim = golden.parameter<int>("head_dim"), tokens = golden.parameter<int>("prompt_tokens");
  const auto bits = golden.parameter<std::vector<int>>("k_bits_salient_regular"), v_bits = golden.parameter<std::vector<int>>("v_bits_salient_regular");
  const zipcache_sets::Settings s{.kv_heads = heads, .k_dim = dim, .v_dim = dim, .k_bits = {bits[0], bits[1]}, .v_bits = {v_bits[0], v_bits[1]}, .meta = MetaType::f32};
  const std::vector<float> saliency = golden.floats("saliency").values;
  std::vector<std::vector<std::uint8_t>> salient;
  std::vector<std::int64_t> regular;
  for (int h = 0; h < heads; ++h) {
    const auto row = std::span(saliency).subspan(static_cast<std::size_t>(h * tokens), static_cast<std::size_t>(tokens));
    salient.emplace_back(static_cast<std::size_t>(tokens), std::uint8_t{1});
    for (const std::int64_t t : zipcache_sets::regular_tokens(row, golden.parameter<double>("unimportant_ratio"))) {
      salient.back()[static_cast<std::size_t>(t)] = 0;
      regular.push_back(t);
    }
  }
  check_set(golden, "prefill_k_regular_index", regular);
  const NamedTensor k = golden.floats("k"), v = golden.floats("v");
  const std::int64_t all = static_cast<std::int64_t>(k.values.size()) / (heads * dim);
  const auto prompt = [&](const NamedTensor& x) { return view_of(x, {heads, all, dim}).slice(1, 0, tokens); };
  const zipcache_sets::CodedTokens t = zipcache_sets::compress(s, prompt(k), prompt(v), salient);
  check_exact(golden, "prefill_v_channel_scale", numbers(t.v_factors));
  for (const int set : {0, 1}) {
    const zipcache_sets::Set& from = t.sets[set];
    const std::string name = set == 0 ? "salient_" : "regular_";
    check_exact(golden, "prefill_k_" + name + "min", numbers(from.k_minima));
    check_exact(golden, "prefill_k_" + name + "step", numbers(from.k_steps));
    // A row joins the i-th token of every head, so rows of the regular set follow the order in which the official top-k left them.
    if (set == 1) continue;
    const bool ties = golden.name().starts_with("ties");  // equal keys: step 0, codes NaN there, 0 here
    if (!ties) check_exact(golden, "prefill_k_" + name + "codes", planar(from.k_codes, from.rows, heads * dim, bits[0]));
    check_exact(golden, "prefill_v_" + name + "min", numbers(from.v_minima));
    check_exact(golden, "prefill_v_" + name + "step", numbers(from.v_steps));
    check_exact(golden, "prefill_v_" + name + "codes", planar(from.v_codes, from.rows, heads * dim, v_bits[0]));
  }
}

}  // namespace

TEST_CASE("ZipCache chooses tokens and codes both sets as the released code does", "[golden]") {
  int compared = 0;
  for (const GoldenCase& golden : golden_cases("zipcache")) {
    CAPTURE(golden.name());
    if (!golden.has("saliency") || golden.parameter<std::string>("dtype") != "torch.float32") continue;
    ++compared;
    check_prefill(golden);
  }
  REQUIRE(compared >= 2);
}
