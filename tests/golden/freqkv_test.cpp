// freqkv against the official code: DCT, low-pass resample, and the iterative cache with its attention.
#include "core/dct.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/rope.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

bool iterates(const GoldenCase& golden) { return golden.has("keys_cache"); }

/// The saved rows of one side, repeated to query heads: [q_heads, entries, dim].
std::vector<float> repeated_rows(const std::vector<NamedBuffer>& buffers, const char* prefix, int q_heads, int kv_heads) {
  std::vector<float> out;
  for (int h = 0; h < q_heads; ++h) {
    const auto& bytes = find_buffer(buffers, cat(prefix, h * kv_heads / q_heads)).bytes;
    std::vector<float> rows(bytes.size() / 4);
    num::load(Dtype::f32, bytes, rows);
    out.insert(out.end(), rows.begin(), rows.end());
  }
  return out;
}

}  // namespace

TEST_CASE("freqkv golden: DCT, its inverse and the low-pass resample agree with the official functions", "[golden]") {
  int cases = 0;
  for (const GoldenCase& golden : golden_cases("freqkv")) {
    if (iterates(golden)) continue;
    ++cases;
    CAPTURE(golden.name());
    const NamedTensor x = golden.floats("x");
    const std::int64_t heads = x.dims[1], tokens = x.dims[2], dim = x.dims[3], kept = golden.parameter<std::int64_t>("M");
    const View<const float> rows = view_of(x, {heads, tokens, dim});
    std::vector<float> spectrum, back, y;
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t c = 0; c < dim; ++c) {
        std::vector<double> column;
        for (std::int64_t t = 0; t < tokens; ++t) column.push_back(static_cast<double>(rows(h, t, c)));
        const std::vector<double> coefficients = dct2(column);
        for (const double v : coefficients) spectrum.push_back(static_cast<float>(v));
        for (const double v : dct3(coefficients)) back.push_back(static_cast<float>(v));
      }
    check_bound(golden, "dct", spectrum);
    check_bound(golden, "roundtrip", back);
    if (kept == 0) {  // the official function drops the block; an operator to nothing does not exist
      REQUIRE(golden.floats("y").values.empty());
      REQUIRE_THROWS_AS(LowPass(Tokens(tokens), Tokens(0)), InvalidArgument);
      continue;
    }
    const LowPass low_pass{Tokens(tokens), Tokens(kept)};
    Array out({heads, kept, dim});
    for (std::int64_t h = 0; h < heads; ++h) low_pass.apply(rows[h], out.view()[h]);
    check_bound(golden, "y", out.values());
  }
  REQUIRE(cases >= 4);
}

TEST_CASE("freqkv golden: the iterative cache holds the official rows and gives the official outputs", "[golden]") {
  int cases = 0;
  for (const GoldenCase& golden : golden_cases("freqkv")) {
    if (!iterates(golden)) continue;
    ++cases;
    CAPTURE(golden.name());
    const auto q_heads = golden.parameter<int>("q_heads"), kv_heads = golden.parameter<int>("kv_heads"), dim = golden.parameter<int>("head_dim");
    const auto tokens = golden.parameter<std::int64_t>("tokens");
    const MethodChoice choice = parse_choice(cat("freqkv:capacity=", golden.parameter<int>("cache_size"), ",sinks=", golden.parameter<int>("sink_size"),
                                                 ",ratio=", golden.parameter<double>("ratio")));
    const CacheShape shape = uniform_shape(1, q_heads, kv_heads, dim, Dtype::f32, {.base = 10000.0, .rotary_dim = dim});
    const NamedTensor frequencies = golden.floats("inv_freq");
    const std::vector<double> ours = rope_frequencies(shape.classes[0].rope);
    REQUIRE(frequencies.values.size() == ours.size());
    for (std::size_t i = 0; i < ours.size(); ++i) REQUIRE(static_cast<double>(frequencies.values[i]) == Approx(ours[i]).epsilon(1e-6));
    const auto cache = choice.method->open(choice.row, shape, {});
    const NamedTensor q = golden.floats("q_pre"), k = golden.floats("k_pre"), v = golden.floats("v");
    std::vector<std::int64_t> positions;
    for (std::int64_t i = 0; i < tokens; ++i) positions.push_back(i);
    Array out({q_heads, tokens, dim});
    // The official groups attend without a causal mask among their new tokens.
    cache->forward(0, {.q = view_of(q, {q_heads, tokens, dim}), .k = view_of(k, {kv_heads, tokens, dim}), .v = view_of(v, {kv_heads, tokens, dim}),
                       .positions = {positions.data(), {tokens}}, .mask = {.kind = MaskKind::bidirectional}},
                   out.view());
    const auto buffers = cache->buffers();
    check_bound(golden, "keys_cache", repeated_rows(buffers, "layer0/k_rows/head", q_heads, kv_heads));
    check_bound(golden, "values_cache", repeated_rows(buffers, "layer0/v_rows/head", q_heads, kv_heads));
    std::vector<float> by_token;  // the official output joins the heads of a token
    for (std::int64_t t = 0; t < tokens; ++t)
      for (int h = 0; h < q_heads; ++h) by_token.insert(by_token.end(), out.view().row(h, t).begin(), out.view().row(h, t).end());
    check_bound(golden, "out", by_token);
  }
  REQUIRE(cases >= 3);
}
