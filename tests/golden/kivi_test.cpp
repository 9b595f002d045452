// KIVI against the released code: codes, packed words, scales, minima, and the cache through prompt, decode and flush.
#include <cmath>
#include <cstring>
#include <functional>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/primitives/group_quantizer.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

float fp16(float x) { return num::round_to(Dtype::f16, x); }

/// One head's coded rows in the order of the released tensors, from our buffers.
struct Coded {
  int bits = 0, group = 0;
  bool along_tokens = false;
  std::int64_t rows = 0, dim = 0;
  std::vector<std::uint8_t> codes;   // [groups, group_size] in our order
  std::vector<float> scale, minimum;  // [groups]

  Coded(int b, int g, bool tokens, std::int64_t width, std::span<const std::byte> packed, std::span<const std::byte> scales,
        std::span<const std::byte> zeros)
      : bits(b), group(g), along_tokens(tokens), dim(width), codes(packed.size() * 8 / static_cast<std::size_t>(b)),
        scale(scales.size() / 2), minimum(zeros.size() / 2) {
    num::unpack(packed, bits, codes);
    num::load(Dtype::f16, scales, scale);
    num::load(Dtype::f16, zeros, minimum);
    rows = static_cast<std::int64_t>(codes.size()) / dim;
  }
  std::size_t group_of(std::int64_t t, std::int64_t c) const {
    return static_cast<std::size_t>(along_tokens ? t / group * dim + c : t * (dim / group) + c / group);
  }
  std::int64_t code(std::int64_t t, std::int64_t c) const {
    return codes[group_of(t, c) * static_cast<std::size_t>(group) + static_cast<std::size_t>((along_tokens ? t : c) % group)];
  }
  /// The word of `per` codes that starts at (t, c) and runs along the group's axis, as the released int32 holds it.
  std::int64_t word(std::int64_t t, std::int64_t c) const {
    std::uint32_t w = 0;
    for (int i = 0; i < 32 / bits; ++i) w |= static_cast<std::uint32_t>(along_tokens ? code(t + i, c) : code(t, c + i)) << (bits * i);
    return static_cast<std::int32_t>(w);
  }
};

/// Collects all heads of one array, element by element in the released order.
struct Collected {
  std::vector<std::int64_t> codes, words, words_fused;
  std::vector<float> scale, minimum, scale_fused, minimum_fused, decoded;

  void add(const Coded& c) {
    const std::int64_t per = 32 / c.bits, step_t = c.along_tokens ? c.group : 1, step_c = c.along_tokens ? 1 : c.group;
    for (std::int64_t t = 0; t < c.rows; ++t)
      for (std::int64_t ch = 0; ch < c.dim; ++ch) {
        const std::size_t g = c.group_of(t, ch);
        codes.push_back(c.code(t, ch));
        decoded.push_back(fp16(fp16(static_cast<float>(c.code(t, ch)) * c.scale[g]) + c.minimum[g]));
        if ((c.along_tokens ? t : ch) % per == 0) words.push_back(c.word(t, ch));
        if (t % step_t == 0 && ch % step_c == 0) {
          scale.push_back(c.scale[g]);
          minimum.push_back(c.minimum[g]);
        }
      }
    if (!c.along_tokens) return;
    for (std::int64_t ch = 0; ch < c.dim; ++ch) {  // channel-major, as the decode kernel reads keys
      for (std::int64_t t = 0; t < c.rows; t += per) words_fused.push_back(c.word(t, ch));
      for (std::int64_t t = 0; t < c.rows; t += c.group) {
        scale_fused.push_back(c.scale[c.group_of(t, ch)]);
        minimum_fused.push_back(c.minimum[c.group_of(t, ch)]);
      }
    }
  }
};

/// Groups of equal values divide 0 by 0 in the released code: what it stores there is the platform's own. Ours are scale 0,
/// codes 0; their elements are taken from the other side before the comparison of the rest.
template <class T>
void accept(std::vector<T>& ours, const std::vector<T>& theirs, const std::vector<std::uint8_t>& degenerate) {
  REQUIRE(ours.size() == theirs.size());
  REQUIRE(degenerate.size() == ours.size());
  for (std::size_t i = 0; i < ours.size(); ++i)
    if (degenerate[i] != 0) ours[i] = theirs[i];
}

void check_floats(const GoldenCase& golden, const std::string& array, const std::vector<float>& ours) {
  if (golden.has(array)) check_exact(golden, array, ours);
}
void check_integers(const GoldenCase& golden, const std::string& array, const std::vector<std::int64_t>& ours) {
  if (golden.has(array)) check_exact(golden, array, ours);
}

/// quant_and_pack_kcache and _vcache: one side of a pack case.
void check_pack(const GoldenCase& golden, bool keys) {
  const std::string side = keys ? "k" : "v";
  if (!golden.has(side)) return;
  const NamedTensor x = golden.floats(side);
  const int bits = golden.parameter<int>("bits"), group = golden.parameter<int>(keys ? "k_group_tokens" : "v_group_channels");
  const std::int64_t heads = x.dims[0] * x.dims[1], tokens = x.dims[2], dim = x.dims[3];
  const GroupQuantizer q{.bits = bits, .group_size = group, .axis = keys ? GroupAxis::tokens : GroupAxis::channels};
  Collected all;
  std::vector<std::uint8_t> flat, flat_words, flat_groups, flat_words_fused, flat_groups_fused;
  for (std::int64_t h = 0; h < heads; ++h) {
    GroupRows rows(q, static_cast<int>(dim));
    rows.append(view_of(x, {heads, tokens, dim})[h]);
    const Coded coded(bits, group, keys, dim, rows.codes(), rows.scales(), rows.zeros());
    REQUIRE(coded.rows == tokens);
    all.add(coded);
    const auto mark = [&](std::int64_t t, std::int64_t c) { return static_cast<std::uint8_t>(coded.scale[coded.group_of(t, c)] == 0); };
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t c = 0; c < dim; ++c) {
        flat.push_back(mark(t, c));
        if (mark(t, c) != 0) REQUIRE(coded.code(t, c) == 0);
        if ((keys ? t : c) % (32 / bits) == 0) flat_words.push_back(mark(t, c));
        if ((keys ? t : c) % group == 0) flat_groups.push_back(mark(t, c));
      }
    for (std::int64_t c = 0; keys && c < dim; ++c)
      for (std::int64_t t = 0; t < tokens; ++t) {
        if (t % (32 / bits) == 0) flat_words_fused.push_back(mark(t, c));
        if (t % group == 0) flat_groups_fused.push_back(mark(t, c));
      }
  }
  const auto floats = [&](const std::string& array, std::vector<float>& ours, const std::vector<std::uint8_t>& degenerate) {
    if (!golden.has(array)) return;
    const NamedTensor theirs = golden.floats(array);
    // A finite scale other than 0 is never degenerate.
    if (array.find("scale") != std::string::npos)
      for (std::size_t i = 0; i < degenerate.size(); ++i)
        REQUIRE((degenerate[i] != 0) == (theirs.values[i] == 0 || !std::isfinite(theirs.values[i])));
    accept(ours, theirs.values, degenerate);
    check_exact(golden, array, ours);
  };
  const auto integers = [&](const std::string& array, std::vector<std::int64_t>& ours, const std::vector<std::uint8_t>& degenerate) {
    if (!golden.has(array)) return;
    accept(ours, golden.integers(array).values, degenerate);
    check_exact(golden, array, ours);
  };
  integers(side + "_codes", all.codes, flat);
  integers(side + "_packed", all.words, flat_words);
  floats(side + "_scale", all.scale, flat_groups);
  check_floats(golden, side + "_min", all.minimum);
  floats(side + "_dequant", all.decoded, flat);
  if (!keys) return;
  integers("k_packed_fused", all.words_fused, flat_words_fused);
  floats("k_scale_fused", all.scale_fused, flat_groups_fused);
  check_floats(golden, "k_min_fused", all.minimum_fused);
}

std::span<const std::byte> bytes_of_buffer(const std::vector<NamedBuffer>& buffers, const std::string& name) {
  return find_buffer(buffers, name).bytes;
}

void check_coded(const GoldenCase& golden, const std::string& when, const KvCache& cache, bool keys) {
  const std::string side = keys ? "k" : "v";
  const int bits = golden.parameter<int>(keys ? "k_bits" : "v_bits"), group = golden.parameter<int>("group_size");
  const std::vector<NamedBuffer> buffers = cache.buffers();
  Collected all;
  std::vector<float> residual;
  for (int h = 0; h < golden.parameter<int>("kv_heads"); ++h) {
    const auto part = [&](const char* name) { return bytes_of_buffer(buffers, cat("layer0/", side, "_", name, "/head", h)); };
    all.add(Coded(bits, group, keys, golden.parameter<int>("head_dim"), part("codes"), part("scales"), part("zeros")));
    std::vector<float> rows(part("residual").size() / 2);
    num::load(Dtype::f16, part("residual"), rows);
    residual.insert(residual.end(), rows.begin(), rows.end());
  }
  check_integers(golden, when + side + "_packed", keys ? all.words_fused : all.words);
  check_floats(golden, when + side + "_scale", keys ? all.scale_fused : all.scale);
  check_floats(golden, when + side + "_min", keys ? all.minimum_fused : all.minimum);
  check_floats(golden, when + side + "_residual", residual);
}

/// A prompt and decode steps through the cache, compared after both; lengths after every step.
void check_cache(const GoldenCase& golden) {
  const int q_heads = golden.parameter<int>("q_heads"), kv_heads = golden.parameter<int>("kv_heads");
  const int dim = golden.parameter<int>("head_dim"), prompt = golden.parameter<int>("prompt_tokens");
  const int steps = golden.parameter<int>("decode_steps");
  const std::string rest = cat(",group_size=", golden.parameter<int>("group_size"), ",residual_window=", golden.parameter<int>("residual_length"));
  const Recipe recipe = Recipe::parse(cat("k=kivi:bits=", golden.parameter<int>("k_bits"), rest, ";v=kivi:bits=",
                                          golden.parameter<int>("v_bits"), rest));
  const auto cache = recipe.bind(uniform_shape(1, q_heads, kv_heads, dim, Dtype::f16)).open();
  const std::int64_t all = prompt + steps;
  const NamedTensor k = golden.floats("k"), v = golden.floats("v");
  const NamedTensor q = golden.has("q") ? golden.floats("q") : NamedTensor{.dims = {}, .values = std::vector<float>(static_cast<std::size_t>(q_heads * all * dim))};
  std::vector<float> outputs;
  std::vector<std::int64_t> lengths;
  const auto note_lengths = [&] {
    const std::vector<NamedBuffer> buffers = cache->buffers();
    const auto rows = [&](const char* name, int bits_of_value) {
      return static_cast<std::int64_t>(bytes_of_buffer(buffers, cat("layer0/", name, "/head0")).size()) * 8 / bits_of_value / dim;
    };
    lengths.insert(lengths.end(), {rows("k_codes", golden.parameter<int>("k_bits")), rows("k_residual", 16),
                                   rows("v_codes", golden.parameter<int>("v_bits")), rows("v_residual", 16), cache->kept(0, 0).value});
  };
  const auto forward = [&](std::int64_t first, std::int64_t n, Array& out) {
    std::vector<std::int64_t> positions;
    for (std::int64_t i = 0; i < n; ++i) positions.push_back(first + i);
    cache->forward(0, {.q = view_of(q, {q_heads, all, dim}).slice(1, first, n), .k = view_of(k, {kv_heads, all, dim}).slice(1, first, n),
                       .v = view_of(v, {kv_heads, all, dim}).slice(1, first, n), .positions = {positions.data(), {n}}}, out.view());
  };
  Array prompt_out({q_heads, prompt, dim});
  forward(0, prompt, prompt_out);
  cache->end_prefill();
  note_lengths();
  check_coded(golden, "after_prefill_", *cache, true);
  check_coded(golden, "after_prefill_", *cache, false);
  for (int step = 0; step < steps; ++step) {
    Array out({q_heads, 1, dim});
    forward(prompt + step, 1, out);
    outputs.insert(outputs.end(), out.values().begin(), out.values().end());
    note_lengths();
  }
  check_coded(golden, "after_decode_", *cache, true);
  check_coded(golden, "after_decode_", *cache, false);
  check_integers(golden, "lengths", lengths);
  if (golden.has("q") && golden.has("decode_output")) check_bound(golden, "decode_output", outputs);
}

/// The released decode kernel's products, from its packed words through our decoder; sums in float64.
void check_product(const GoldenCase& golden) {
  const int bits = golden.parameter<int>("bits"), group = golden.parameter<int>("group"), per = 32 / bits;
  const std::int64_t inner = golden.parameter<int>("inner"), outer = golden.parameter<int>("outer");
  const std::int64_t batch = golden.parameter<int>("batch"), kv_heads = golden.parameter<int>("kv_heads"), q_heads = golden.parameter<int>("q_heads");
  const NamedTensor a = golden.floats("a"), scale = golden.floats("scale"), minimum = golden.floats("min");
  const IntTensor packed = golden.integers("packed");
  std::vector<float> out;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < q_heads; ++h)
      for (std::int64_t o = 0; o < outer; ++o) {
        const std::int64_t head = b * kv_heads + h / (q_heads / kv_heads);
        double sum = 0;
        for (std::int64_t i = 0; i < inner; ++i) {
          const auto word = static_cast<std::uint32_t>(packed.values[static_cast<std::size_t>((head * inner + i) * (outer / per) + o / per)]);
          const auto g = static_cast<std::size_t>((head * inner + i) * (outer / group) + o / group);
          sum += static_cast<double>(a.values[static_cast<std::size_t>((b * q_heads + h) * inner + i)]) *
                 static_cast<double>(GroupQuantizer{}.decode(num::field_of_word(word, static_cast<int>(o % per), bits),
                                                            {.scale = scale.values[g], .zero = minimum.values[g]}));
        }
        out.push_back(fp16(static_cast<float>(sum)));
      }
  check_bound(golden, "out_fma", out);
}

/// The float32 simulation of the same quantizer: groups of a token's channels, and whole channels.
void check_simulation(const GoldenCase& golden) {
  const NamedTensor x = golden.floats("x");
  const std::int64_t tokens = golden.parameter<int>("tokens"), channels = golden.parameter<int>("channels");
  const auto check = [&](const std::string& what, int group_size, const std::function<std::size_t(std::int64_t, std::int64_t)>& at, std::int64_t groups) {
    const GroupQuantizer q{.bits = golden.parameter<int>("bits"), .group_size = group_size, .work = Dtype::f32, .meta = MetaType::f32};
    std::vector<float> scales, minima, decoded(x.values.size());
    std::vector<std::int64_t> all_codes(x.values.size());
    for (std::int64_t g = 0; g < groups; ++g) {
      std::vector<float> group(static_cast<std::size_t>(group_size));
      std::vector<std::uint8_t> codes(group.size());
      for (std::size_t e = 0; e < group.size(); ++e) group[e] = x.values[at(g, static_cast<std::int64_t>(e))];
      const GroupQuantizer::Meta m = q.encode(group, codes);
      scales.push_back(m.scale);
      minima.push_back(m.zero);
      for (std::size_t e = 0; e < group.size(); ++e) {
        const std::size_t place = at(g, static_cast<std::int64_t>(e));
        all_codes[place] = codes[e];
        const float product = static_cast<float>(codes[e]) * m.scale;
        decoded[place] = product + m.zero;
      }
    }
    check_floats(golden, what + "_scale", scales);
    check_floats(golden, what + "_min", minima);
    check_integers(golden, what + "_codes", all_codes);
    check_floats(golden, what + "_dequant", decoded);
  };
  const int per_token = golden.parameter<int>("group_channels");
  check("token", per_token, [&](std::int64_t g, std::int64_t e) { return static_cast<std::size_t>(g * per_token + e); }, tokens * channels / per_token);
  check("channel", static_cast<int>(tokens), [&](std::int64_t g, std::int64_t e) { return static_cast<std::size_t>(e * channels + g); }, channels);
}

}  // namespace

TEST_CASE("KIVI stores the codes, words, scales and minima of the released code, through prompt, decode and flush", "[golden]") {
  int compared = 0;
  for (const GoldenCase& golden : golden_cases("kivi")) {
    CAPTURE(golden.name());
    ++compared;
    if (golden.name().starts_with("cache_")) {
      check_cache(golden);
    } else if (golden.name().starts_with("gemv_")) {
      check_product(golden);
    } else if (golden.name().starts_with("simulated_")) {
      check_simulation(golden);
    } else {
      check_pack(golden, true);
      check_pack(golden, false);
    }
  }
  REQUIRE(compared >= 5);
}
