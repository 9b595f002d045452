#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/philox.hpp"
#include "reference/coding/cachegen/codec.hpp"
#include "reference/coding/cachegen/streaming.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;
using cachegen::Codec;
using cachegen::CodedSide;
using cachegen::Level;

namespace {

Array normal_rows(std::int64_t tokens, int channels, std::uint64_t seed, Dtype dtype = Dtype::f32) {
  Random random(seed);
  Array rows({tokens, channels});
  for (float& x : rows.values()) x = random.normal();
  if (dtype != Dtype::f32) num::round_to(dtype, rows.values());
  return rows;
}

Array decoded(const CodedSide& side) {
  Array out({side.tokens(), side.layout().channels});
  side.decode(0, out.view());
  return out;
}

Scenario scenario(const std::string& text, std::int64_t prompt, std::int64_t decode) {
  const MethodChoice choice = parse_choice(text);
  return {.method = choice.method, .shape = uniform_shape(3, 2, 1, 16, Dtype::bf16, {.rotary_dim = 16}), .row = choice.row,
          .prompt = prompt, .chunk = prompt, .decode = decode, .seed = 11};
}

}  // namespace

TEST_CASE("cachegen: a token's codes and decoded values are those of the worked example", "[unit]") {
  const std::vector<float> x{1.0F, -0.5F, 0.25F, 0.1F};
  const int half = cachegen::half_range(16);
  CHECK(half == 7);
  CHECK(cachegen::half_range(32) == 15);
  CHECK(cachegen::half_range(12) == 5);
  const std::vector<int> codes{14, 4, 9, 8};  // -0.5 * 7 + 7 = 3.5: rounded after the offset, to even
  const std::vector<double> back{1.0, -0.428571, 0.285714, 0.142857};
  for (std::size_t i = 0; i < x.size(); ++i) {
    CHECK(cachegen::quantize(x[i], 1.0F, half) == codes[i]);
    CHECK(static_cast<double>(cachegen::dequantize(static_cast<std::uint8_t>(codes[i]), 1.0F, half)) == Approx(back[i]).margin(1e-6));
  }
}

TEST_CASE("cachegen: an all-zero token, and one whose scale cannot be inverted, decode to zeros", "[unit]") {
  CHECK(cachegen::quantize(0.0F, 0.0F, 15) == 15);
  CHECK(cachegen::quantize(1e-39F, 1e-39F, 15) == 15);
  for (const Codec codec : {Codec::code, Codec::paper}) {
    CodedSide side({.codec = codec, .channels = 8, .dtype = Dtype::f32, .chunk = 16});
    side.encode(Array({21, 8}).view());
    CHECK(side.tokens() == 21);
    CHECK(decoded(side).values() == std::vector<float>(21 * 8, 0.0F));
  }
}

TEST_CASE("cachegen: tables of bins by level, layer and depth", "[unit]") {
  const auto bins = [](Level level, int layer, int layers, Side side) { return cachegen::bins_of(level, layer, layers, side); };
  CHECK(bins(Level::standard, 9, 32, Side::key) == 32);
  CHECK(bins(Level::standard, 10, 32, Side::key) == 16);
  CHECK(bins(Level::standard, 1, 32, Side::value) == 32);
  CHECK(bins(Level::standard, 2, 32, Side::value) == 16);
  CHECK(bins(Level::standard, 39, 40, Side::key) == 16);
  CHECK(bins(Level::standard, 8, 9, Side::value) == 32);
  CHECK(bins(Level::standard, 39, 80, Side::key) == 32);
  CHECK(bins(Level::standard, 40, 80, Side::key) == 16);
  CHECK(bins(Level::standard, 19, 80, Side::value) == 32);
  CHECK(bins(Level::standard, 20, 80, Side::value) == 16);
  CHECK(bins(Level::level1, 19, 32, Side::key) == 16);
  CHECK(bins(Level::level1, 20, 32, Side::key) == 12);
  CHECK(bins(Level::level1, 1, 32, Side::value) == 16);
  CHECK(bins(Level::level1, 2, 32, Side::value) == 12);
  CHECK(bins(Level::level2, 9, 32, Side::key) == 32);
  CHECK(bins(Level::level2, 10, 32, Side::key) == 16);
  CHECK(bins(Level::level2, 2, 32, Side::value) == 16);
  CHECK(bins(Level::level3, 31, 32, Side::value) == 32);
  CHECK(cachegen::delta_width(0, 3) == 0.5F);
  CHECK(cachegen::delta_width(1, 3) == 1.0F);
  CHECK(cachegen::delta_width(31, 32) == 1.5F);
}

TEST_CASE("cachegen: decoding gives each value's quantized self for every length, chunk and dtype", "[unit]") {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
    for (const std::int64_t tokens : {1, 2, 31, 32, 33, 256, 257, 600})
      for (const std::int64_t chunk : {1, 7, 256, 1000}) {
        if (chunk == 1 && tokens > 33) continue;
        CAPTURE(name_of(dtype), tokens, chunk);
        const Array rows = normal_rows(tokens, 5, static_cast<std::uint64_t>(tokens), dtype);
        CodedSide side({.channels = 5, .bins = 16, .table_bins = 32, .dtype = dtype, .chunk = chunk});
        side.encode(rows.view());
        const Array back = decoded(side);
        for (std::int64_t t = 0; t < tokens; ++t) {
          float absmax = 0;
          for (const float x : rows.view().row(t)) absmax = std::max(absmax, std::abs(x));
          for (std::int64_t c = 0; c < 5; ++c)
            REQUIRE(back.view()(t, c) == num::round_to(dtype, cachegen::dequantize(cachegen::quantize(rows.view()(t, c), absmax, 7), absmax, 7)));
        }
        // A few channels alone decode to the same values.
        Array part({tokens, 2});
        side.decode(2, part.view());
        for (std::int64_t t = 0; t < tokens; ++t) REQUIRE(part.view()(t, 1) == back.view()(t, 3));
      }
}

TEST_CASE("cachegen paper: anchors are exact to 8 bits, deltas to half a bin, and errors do not add up", "[unit]") {
  for (const std::int64_t tokens : {1, 2, 10, 11, 95}) {
    CAPTURE(tokens);
    const Array rows = normal_rows(tokens, 6, 4);
    CodedSide side({.codec = Codec::paper, .channels = 6, .width = 0.5F, .dtype = Dtype::f32, .chunk = 40});
    side.encode(rows.view());
    CHECK(static_cast<std::int64_t>(side.absmax().size()) == (tokens == 95 ? 4 + 4 + 2 : (tokens + 9) / 10));
    const Array back = decoded(side);
    for (std::int64_t t = 0; t < tokens; ++t) {
      float absmax = 0;
      for (const float x : rows.view().row(t)) absmax = std::max(absmax, std::abs(x));
      const bool anchor = t % 40 % 10 == 0;
      for (std::int64_t c = 0; c < 6; ++c)
        REQUIRE(std::abs(back.view()(t, c) - rows.view()(t, c)) <= (anchor ? absmax / 254 : 0.25F) * 1.0001F);
    }
  }
}

TEST_CASE("cachegen: fixed bytes are those of the format: 66 bytes of table a channel, 4 of length a stream, 2 of scale a token", "[unit]") {
  const cachegen::FixedBytes code = cachegen::fixed_bytes({.channels = 1024, .bins = 16, .table_bins = 32, .dtype = Dtype::bf16, .chunk = 256}, 600);
  CHECK(code.cdf == 3 * 1024 * 66);
  CHECK(code.lengths == 3 * 1024 * 4);
  CHECK(code.absmax == 600 * 2);
  const cachegen::FixedBytes wide = cachegen::fixed_bytes({.channels = 1024, .bins = 16, .table_bins = 32, .dtype = Dtype::bf16, .chunk = 1500}, 1500);
  CHECK(wide.cdf == 1024 * 66);
  CHECK(wide.lengths == 6 * 1024 * 4);
  // Anchors and deltas have tables of 256 symbols each; a chunk of one token has no delta.
  const cachegen::FixedBytes paper = cachegen::fixed_bytes({.codec = Codec::paper, .channels = 10, .dtype = Dtype::bf16, .chunk = 20}, 21);
  CHECK(paper.cdf == 10 * 3 * 514);
  CHECK(paper.lengths == 10 * 3 * 4);
  CHECK(paper.absmax == 3 * 2);
  CHECK(cachegen::fixed_bytes({.channels = 4}, 0).cdf == 0);
}

TEST_CASE("cachegen: the expected stream bytes meet the coded bytes of normal values within 3%", "[unit]") {
  for (const Codec codec : {Codec::code, Codec::paper})
    for (const int bins : {12, 16, 32})
      for (const std::int64_t tokens : {256, 1500}) {
        CAPTURE(static_cast<int>(codec), bins, tokens);
        CodedSide side({.codec = codec, .channels = 128, .bins = bins, .table_bins = 32, .width = 0.5F, .dtype = Dtype::f32, .chunk = 1500});
        Array rows({tokens, 128});
        for (std::int64_t i = 0; i < rows.view().size(); ++i)
          rows.values()[static_cast<std::size_t>(i)] = static_cast<float>(random_normal({.seed = 3}, static_cast<std::uint64_t>(i)));
        side.encode(rows.view());
        const auto expected = static_cast<double>(cachegen::expected_stream_bytes(side.layout(), tokens));
        CHECK(static_cast<double>(side.stream_bytes()) == Approx(expected).epsilon(0.03));
      }
}

TEST_CASE("cachegen: the cache counts its coded bytes, and the formula without counts states an expectation", "[unit]") {
  const Scenario s = scenario("cachegen:chunk=100", 230, 2);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  run_decode(*cache, s, 0, 2);
  const ContentCounts counts = cache->content_counts();
  const Ledger live = count_ledger(cache->buffers());
  CHECK(live.of("streams", Side::key).value == counts.get("coded_bytes_key", -1));
  CHECK(live.of("streams", Side::value).value == counts.get("coded_bytes_value", -1));
  CHECK(live.of("rows", Side::key).value == 2 * 16 * 2 * 3);
  const Ledger predicted = formula_ledger(*s.method, s.row, s.shape, s.history(2));
  CHECK(predicted.of("cdf", Side::key) == live.of("cdf", Side::key));
  const double ratio = static_cast<double>(predicted.of("streams", Side::value).value) / static_cast<double>(live.of("streams", Side::value).value);
  CHECK(ratio > 0.9);
  CHECK(ratio < 1.1);
}

TEST_CASE("cachegen: it is a transport format, so a decode step reads what the full cache reads", "[unit]") {
  const Method& m = find_method("cachegen");
  const CacheShape shape = uniform_shape(32, 32, 8, 128, Dtype::bf16, {.rotary_dim = 128});
  const History h{.prompt = Tokens(8192), .generated = Tokens(1)};
  CHECK(m.transport_only);
  CHECK_FALSE(find_method("full").transport_only);
  CHECK(m.decode_plan(defaults_of(m.params), shape, h, {}).read_bytes() == find_method("full").decode_plan({}, shape, h, {}).read_bytes());
  CHECK(formula_ledger(m, defaults_of(m.params), shape, h).total() < formula_ledger(find_method("full"), {}, shape, h).total() * 1 / 3);
}

TEST_CASE("cachegen: each chunk takes the best level that arrives within its share of the objective", "[unit]") {
  const cachegen::ChunkSizes sizes{Bytes(30'000'000), Bytes(45'000'000), Bytes(60'000'000)};
  const std::vector<cachegen::ChunkSizes> chunks(4, sizes);
  const auto gigabits = [](double g) { return BytesPerSecond(g * 1e9 / 8); };
  const std::vector<BytesPerSecond> bandwidth{gigabits(1.0), gigabits(0.6), gigabits(0.3), gigabits(5.0)};
  const cachegen::StreamingPlan plan = cachegen::choose_levels(chunks, bandwidth, Seconds(2.0), Seconds(0.2));
  CHECK(plan.levels == std::vector<int>{3, 1, 0, 3});
  CHECK(plan.time_to_first_token.value == Approx(0.48 + 0.40 + 0.20 + 0.096));
  CHECK_THROWS_WITH(cachegen::choose_levels(chunks, std::span(bandwidth).first(3), Seconds(2.0), Seconds(0.2)),
                    "bandwidth has 3 entries for 4 chunks, must be one a chunk and at least one");
  CHECK_THROWS_WITH(cachegen::choose_levels(chunks, bandwidth, Seconds(0.0), Seconds(0.2)), "objective is 0 s, must be above 0");
  CHECK_THROWS_WITH(cachegen::choose_levels(std::span(chunks).first(1), std::vector<BytesPerSecond>{BytesPerSecond(0.0)}, Seconds(1.0), Seconds(0.2)),
                    "bandwidth[0] is 0 B/s, must be above 0");
}

TEST_CASE("cachegen: damaged buffers are refused with the name of the buffer", "[unit]") {
  const Scenario s = scenario("cachegen:chunk=20", 33, 0);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  const auto saved = cache->buffers();
  const auto refusal = [&](const std::string& name, const auto& damage) {
    auto damaged = saved;
    for (NamedBuffer& b : damaged)
      if (b.name == name) damage(b.bytes);
    try {
      open_cache(s)->load(damaged);
    } catch (const InvalidArgument& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  CHECK(refusal("header", [](auto& b) { b[3] = std::byte{0x7F}; }).find("buffer header says") == 0);
  CHECK(refusal("layer1/v_absmax", [](auto& b) { b.pop_back(); }) == "buffer layer1/v_absmax has 65 bytes, must be 66 for 33 tokens");
  CHECK(refusal("layer0/k_cdf", [](auto& b) { b[2] = std::byte{0}; }) == "buffer layer0/k_cdf holds a table that does not rise from 0 to 65535");
  CHECK(refusal("layer0/k_streams", [](auto& b) { b.push_back({}); }).find("buffer layer0/k_streams has") == 0);
  CHECK(refusal("layer0/k_lengths", [](auto& b) { b[0] = b[1] = b[2] = b[3] = std::byte{0}; }) == "buffer layer0/k_lengths holds 0, a stream has at least 1 byte");
  CHECK_THROWS_WITH(cache->crop(Tokens(32)), "cachegen: crop to 32 tokens would cut into the coded prompt (33)");
}

TEST_CASE("cachegen: refusals name the reason", "[unit]") {
  CacheShape shape = uniform_shape(1, 1, 1, 16);
  CHECK(Recipe::parse("cachegen:codec=paper,level=2").why_not(shape) == "cachegen: level has a meaning with codec=code alone; codec=paper has one set of bins");
  shape.classes[0].window = Tokens(64);
  CHECK(Recipe::parse("cachegen").why_not(shape) ==
        "cachegen: a sliding window of 64 tokens drops tokens that the coded chunks hold; use full for such layers");
  shape = uniform_shape(1, 4, 1, 24);
  shape.classes[0].kind = RowKind::latent;
  shape.classes[0].v_dim = 16;
  CHECK(Recipe::parse("cachegen").why_not(shape) == "cachegen: layers must cache keys and values; other rows have no pair of key and value tables");
}

TEST_CASE("cachegen: an open prompt loaded into a used cache leaves no coded prompt behind, a refused load nothing", "[unit]") {
  const Scenario s = scenario("cachegen", 40, 2);
  const auto used = open_cache(s), open = open_cache(s), fresh = open_cache(s);
  run_prompt(*used, s);
  std::vector<NamedBuffer> saved;
  run_prompt(*open, s, [&] { saved = open->buffers(); });
  const std::uint64_t before = digest(used->buffers());
  auto broken = saved;
  broken.back().bytes.pop_back();
  CHECK_THROWS_AS(used->load(broken), InvalidArgument);
  CHECK(digest(used->buffers()) == before);
  used->load(saved);
  fresh->load(saved);
  CHECK(used->kept(0, 0) == 40_tok);
  CHECK(run_decode(*used, s, 0, 2) == run_decode(*fresh, s, 0, 2));
  CHECK(digest(used->buffers()) == digest(fresh->buffers()));
  CHECK(used->content_counts().counts.front().value == 0);
}
