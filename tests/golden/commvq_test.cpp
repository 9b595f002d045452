// CommVQ's codes against the released compressors: key codewords and reconstruction, value bits, packing and reconstruction.
#include <algorithm>
#include <cmath>

#include "reference/quantization/commvq/codes.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

void check_keys(const GoldenCase& golden) {
  const NamedTensor k = golden.floats("k"), theta = golden.floats("theta"), norm = golden.floats("norm"), decoded = golden.floats("decoded");
  const std::vector<std::int64_t> codes = golden.integers("codes").values;
  const std::int64_t heads = golden.parameter<int>("kv_heads"), tokens = golden.parameter<int>("tokens"), dim = golden.parameter<int>("head_dim");
  const std::int64_t stages = golden.parameter<int>("residual_stages"), entries = theta.dims[2] / 2, pairs = dim / 2;
  std::int64_t same = 0;
  float error = 0;
  const std::int64_t some = std::min<std::int64_t>(tokens, 8);  // 4096 distances a stage and token
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t t = 0; t < tokens; ++t) {
      const View<const float> all = view_of(theta, {heads, stages, 2 * entries, pairs});
      const commvq::KeyBook book{all[h]};
      const float p = norm.values[static_cast<std::size_t>(t)];
      std::vector<float> key;
      for (const float x : view_of(k, {tokens, heads, dim}).row(t, h)) key.push_back(x / p);
      std::vector<std::uint32_t> theirs;
      for (std::int64_t s = 0; s < stages; ++s) theirs.push_back(static_cast<std::uint32_t>(codes[static_cast<std::size_t>((s * heads + h) * tokens + t)]));
      if (t < some) same += commvq::encode_key(book, key) == theirs ? 1 : 0;
      std::vector<float> ours(static_cast<std::size_t>(dim));
      commvq::decode_key(book, theirs, ours);
      const auto paired = view_of(decoded, {tokens, heads, dim}).row(t, h);
      for (std::int64_t j = 0; j < pairs; ++j) {
        const auto at = static_cast<std::size_t>(j);
        error = std::max(error, std::fabs(ours[at] * p - paired[2 * at]) / p);
        error = std::max(error, std::fabs(ours[at + static_cast<std::size_t>(pairs)] * p - paired[2 * at + 1]) / p);
      }
    }
  CHECK(same >= heads * some - 1);  // the released distances are matrix products: a near tie may fall otherwise
  CHECK(error <= 1e-5F);
}

void check_values(const GoldenCase& golden) {
  const NamedTensor v = golden.floats("v"), scale = golden.floats("channel_scale"), lw = golden.floats("ln_weight"), lb = golden.floats("ln_bias");
  const NamedTensor w1 = golden.floats("w1"), b1 = golden.floats("b1"), w2 = golden.floats("w2"), b2 = golden.floats("b2"), e = golden.floats("embedding");
  const std::int64_t tokens = v.dims[0], channels = v.dims[1];
  const commvq::ValueNet net{.channel_scale = scale.values, .ln_weight = lw.values, .ln_bias = lb.values, .w1 = view_of(w1, {w1.dims[0], w1.dims[1]}),
                             .w2 = view_of(w2, {w2.dims[0], w2.dims[1]}), .b1 = b1.values, .b2 = b2.values, .embedding = view_of(e, {e.dims[0], e.dims[1]})};
  std::vector<float> norms, logits, decoded;
  std::vector<std::int64_t> bits;
  const std::vector<std::int64_t> theirs = golden.integers("bits").values;
  const std::size_t per_token = theirs.size() / static_cast<std::size_t>(tokens);
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<float> l, back(static_cast<std::size_t>(channels));
    const commvq::ValueCode code = commvq::encode_value(net, view_of(v, {tokens, channels}).row(t), &l);
    norms.push_back(code.norm);
    logits.insert(logits.end(), l.begin(), l.end());
    bits.insert(bits.end(), code.bits.begin(), code.bits.end());
    std::vector<std::uint8_t> given;
    for (std::size_t i = 0; i < per_token; ++i) given.push_back(static_cast<std::uint8_t>(theirs[static_cast<std::size_t>(t) * per_token + i]));
    commvq::decode_value(scale.values, net.embedding, given, golden.floats("norm").values[static_cast<std::size_t>(t)], back);
    decoded.insert(decoded.end(), back.begin(), back.end());
  }
  check_bound(golden, "norm", norms, {.atol = 1e-12, .rtol = 1e-6});
  if (golden.has("logits")) check_bound(golden, "logits", logits, {.of_max = 1e-5});
  check_exact(golden, "bits", bits);
  check_bound(golden, "decoded", decoded, {.of_max = 1e-5});
}

}  // namespace

TEST_CASE("commvq agrees with the released compressors", "[golden]") {
  for (const GoldenCase& golden : golden_cases("commvq")) {
    CAPTURE(golden.name());
    if (golden.has("theta")) {
      check_keys(golden);
    } else {
      check_values(golden);
    }
  }
}
