#include <bit>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

Scenario scenario(const std::string& text, int layers, std::int64_t prompt, Dtype dtype = Dtype::f32, int kv_heads = 1) {
  const MethodChoice choice = parse_choice(text);
  return {.method = choice.method, .shape = uniform_shape(layers, 2 * kv_heads, kv_heads, 16, dtype, {.rotary_dim = 16}), .row = choice.row,
          .prompt = prompt, .chunk = prompt, .decode = 0, .seed = 5};
}

float value_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

}  // namespace

TEST_CASE("xkv: a rank above the smaller side reproduces the input: outputs are those of the full cache to float32 error", "[unit]") {
  for (const std::int64_t prompt : {1, 2, 31, 33, 70}) {  // below and above the 2 * 16 channels of a group
    CAPTURE(prompt);
    const Scenario s = scenario("xkv:group_layers=2,rank_k=512,rank_v=768", 3, prompt);
    Scenario plain = s;
    plain.method = &find_method("full");
    plain.row = {};
    const auto cache = open_cache(s), reference = open_cache(plain);
    REQUIRE(run_prompt(*cache, s) == run_prompt(*reference, plain));  // the prompt itself is exact, to the bit
    const auto ours = run_decode(*cache, s, 0, 3), theirs = run_decode(*reference, plain, 0, 3);
    for (std::size_t i = 0; i < ours.size(); ++i)
      REQUIRE(static_cast<double>(value_of(ours[i])) == Approx(static_cast<double>(value_of(theirs[i]))).margin(3e-5));
  }
}

TEST_CASE("xkv: identical layers need only the rank of one", "[unit]") {
  // Three layers with equal rows of rank 2: a rank of 2 holds all of them.
  const Scenario s = scenario("xkv:group_layers=3,rank_k=2,rank_v=2", 3, 20);
  const auto cache = open_cache(s);
  Array q({2, 20, 16}, 0.1F), k({1, 20, 16}), v({1, 20, 16}), out({2, 20, 16});
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < 20; ++t) {
    positions.push_back(t);
    for (std::int64_t c = 0; c < 16; ++c) {
      k.view()(0, t, c) = static_cast<float>(t % 3) * static_cast<float>(c) + static_cast<float>(t);
      v.view()(0, t, c) = static_cast<float>(c % 2 == 0 ? t : 5);
    }
  }
  for (int l = 0; l < 3; ++l) cache->forward(l, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {20}}}, out.view());
  cache->end_prefill();
  for (const char* side : {"k_", "v_"}) {
    const auto buffers = cache->buffers();
    std::vector<float> a(20 * 2), b(2 * 48);
    num::load(Dtype::f32, find_buffer(buffers, cat("group0/", side, "coefficients")).bytes, a);
    num::load(Dtype::f32, find_buffer(buffers, cat("group0/", side, "basis")).bytes, b);
    for (std::size_t t = 0; t < 20; ++t)
      for (std::size_t c = 0; c < 48; ++c) {
        const float x = (side[0] == 'k' ? k : v).view()(0, static_cast<std::int64_t>(t), static_cast<std::int64_t>(c % 16));
        REQUIRE(static_cast<double>(a[2 * t] * b[c] + a[2 * t + 1] * b[48 + c]) == Approx(static_cast<double>(x)).margin(2e-4));
      }
  }
}

TEST_CASE("xkv: all-zero tokens, and a prompt of zeros alone, stay zero", "[unit]") {
  const Scenario s = scenario("xkv:group_layers=2,rank_k=4,rank_v=4", 2, 9);
  const auto cache = open_cache(s);
  Array q({2, 9, 16}, 1.0F), k({1, 9, 16}), v({1, 9, 16}), out({2, 9, 16}, 7.0F);
  std::vector<std::int64_t> positions{0, 1, 2, 3, 4, 5, 6, 7, 8};
  for (int l = 0; l < 2; ++l) cache->forward(l, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {9}}}, out.view());
  cache->end_prefill();
  const std::int64_t next = 9;
  Array one({2, 1, 16}, 7.0F);
  cache->forward(0, {.q = q.view().slice(1, 0, 1), .k = k.view().slice(1, 0, 1), .v = v.view().slice(1, 0, 1), .positions = {&next, {1}}}, one.view());
  for (const float f : one.values()) CHECK(f == 0.0F);
}

TEST_CASE("xkv: bytes are those of the sheet: 6.4 times smaller without bases, 6.02 times with them at 65,536 tokens", "[unit]") {
  const Method& m = find_method("xkv");
  const CacheShape shape = uniform_shape(32, 32, 8, 128, Dtype::bf16, {.rotary_dim = 128});
  const History h{.prompt = Tokens(65536)};
  const Ledger ledger = formula_ledger(m, defaults_of(m.params), shape, h);
  const double dense = static_cast<double>(dense_bytes(shape, Tokens(65536)).value);
  const Bytes coefficients = ledger.of("coefficients", Side::key) + ledger.of("coefficients", Side::value);
  CHECK(coefficients.value == 65536 * 640LL * 32);
  CHECK(dense / static_cast<double>(coefficients.value) == Approx(6.4));
  CHECK(dense / static_cast<double>(ledger.total().value) == Approx(6.02).epsilon(0.001));
  CHECK((ledger.of("basis", Side::key) + ledger.of("basis", Side::value)).value == 2 * 1280 * 1024 * 32LL);
  CHECK(static_cast<double>(ledger.prefill().value) == dense);
}

TEST_CASE("xkv: the last group may be short, and ranks stop at the smaller side", "[unit]") {
  const Method& m = find_method("xkv");
  const CacheShape shape = uniform_shape(5, 2, 1, 16, Dtype::bf16);
  const ParamRow row = parse_choice("xkv:group_layers=2,rank_k=20,rank_v=100").row;
  const Ledger ledger = formula_ledger(m, row, shape, {.prompt = Tokens(24)});
  // Groups of 2, 2 and 1 layers: 32, 32 and 16 channels.
  CHECK(ledger.of("coefficients", Side::key).value == 2 * 24 * (20 + 20 + 16));
  CHECK(ledger.of("basis", Side::key).value == 2 * (20 * 32 + 20 * 32 + 16 * 16));
  CHECK(ledger.of("coefficients", Side::value).value == 2 * 24 * (24 + 24 + 16));
}

TEST_CASE("xkv: the squared error of the rebuilt values is the sum of the dropped squared singular values", "[unit]") {
  // Values diag(4, 3, 2, 1) over one layer: rank 2 keeps 4 and 3, drops 2 and 1.
  const Scenario s = scenario("xkv:group_layers=1,rank_k=2,rank_v=2", 1, 4);
  const auto cache = open_cache(s);
  Array q({2, 4, 16}), k({1, 4, 16}), v({1, 4, 16}), out({2, 4, 16});
  for (std::int64_t t = 0; t < 4; ++t) v.view()(0, t, t) = static_cast<float>(4 - t);
  const std::vector<std::int64_t> positions{0, 1, 2, 3};
  cache->forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {4}}}, out.view());
  cache->end_prefill();
  const auto buffers = cache->buffers();
  std::vector<float> a(8), b(32);
  num::load(Dtype::f32, find_buffer(buffers, "group0/v_coefficients").bytes, a);
  num::load(Dtype::f32, find_buffer(buffers, "group0/v_basis").bytes, b);
  double error = 0;
  for (std::size_t t = 0; t < 4; ++t)
    for (std::size_t c = 0; c < 16; ++c) {
      const double d = static_cast<double>(v.view()(0, static_cast<std::int64_t>(t), static_cast<std::int64_t>(c)) - (a[2 * t] * b[c] + a[2 * t + 1] * b[16 + c]));
      error += d * d;
    }
  CHECK(error == Approx(5.0));
  CHECK(b[0] == Approx(4.0F));
}

TEST_CASE("xkv: a prompt above the Jacobi limit goes through subspace iteration and still rebuilds what has the rank", "[unit]") {
  const Scenario s = scenario("xkv:group_layers=1,rank_k=3,rank_v=3", 1, 300, Dtype::f32, 17);  // 300 x 272
  const auto cache = open_cache(s);
  Array q({34, 300, 16}), k({17, 300, 16}), v({17, 300, 16}), out({34, 300, 16});
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < 300; ++t) {
    positions.push_back(t);
    for (std::int64_t h = 0; h < 17; ++h)
      for (std::int64_t c = 0; c < 16; ++c) v.view()(h, t, c) = static_cast<float>(t % 7) + static_cast<float>(h - 8) * static_cast<float>(t % 5) * 0.25F;
  }
  cache->forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {300}}}, out.view());
  cache->end_prefill();
  const auto buffers = cache->buffers();
  std::vector<float> a(900), b(3 * 272);
  num::load(Dtype::f32, find_buffer(buffers, "group0/v_coefficients").bytes, a);
  num::load(Dtype::f32, find_buffer(buffers, "group0/v_basis").bytes, b);
  for (std::size_t t = 0; t < 300; t += 13)
    for (std::size_t c = 0; c < 272; ++c) {
      double sum = 0;
      for (std::size_t j = 0; j < 3; ++j) sum += static_cast<double>(a[3 * t + j]) * static_cast<double>(b[j * 272 + c]);
      REQUIRE(sum == Approx(static_cast<double>(v.view()(static_cast<std::int64_t>(c / 16), static_cast<std::int64_t>(t), 0))).margin(1e-3));
    }
}

TEST_CASE("xkv: refusals name the reason", "[unit]") {
  CacheShape shape = uniform_shape(1, 1, 1, 16);
  shape.classes[0].window = Tokens(64);
  CHECK(Recipe::parse("xkv").why_not(shape) ==
        "xkv: a sliding window of 64 tokens drops rows that a factorisation of the prompt holds; use full for such layers");
  shape = uniform_shape(1, 4, 1, 24);
  shape.classes[0].kind = RowKind::latent;
  shape.classes[0].v_dim = 16;
  CHECK(Recipe::parse("xkv").why_not(shape) == "xkv: layers must cache keys and values; other rows are not factorised across layers here");

  const Scenario s = scenario("xkv:group_layers=2,rank_k=4,rank_v=4", 2, 6);
  const auto cache = open_cache(s);
  Inputs late = inputs_for(s.shape, 0, 1, 1, 5);
  Array out({2, 1, 16});
  CHECK_THROWS_WITH(cache->forward(0, late.step(), out.view()),
                    "xkv: positions[0] is 1, prompt positions must be 0, 1, 2, ... as the prompt keeps none (0 is next)");
  const Inputs one = inputs_for(s.shape, 0, 0, 1, 5);
  cache->forward(0, one.step(), out.view());
  CHECK_THROWS_WITH(cache->end_prefill(), "layer 1 has 0 tokens, must have as many as the first layer (1)");
  cache->forward(1, one.step(), out.view());
  cache->end_prefill();
  CHECK_THROWS_WITH(cache->forward(0, one.step(), out.view()), "positions[0] is 0, must be behind the prompt (1 tokens)");
  CHECK_THROWS_WITH(cache->crop(Tokens(0)), "xkv: crop to 0 tokens would cut into the factorised prompt (1)");
  auto saved = cache->buffers();
  for (NamedBuffer& b : saved)
    if (b.name == "group0/v_basis") b.bytes.pop_back();
  CHECK_THROWS_WITH(open_cache(s)->load(saved), "buffer group0/v_basis has 127 bytes, must be 128 for a prompt of 1 tokens");
}

TEST_CASE("xkv: a fp16 basis that would overflow is refused before anything changes", "[unit]") {
  const Scenario s = scenario("xkv:group_layers=1,rank_k=2,rank_v=2", 1, 4, Dtype::f16);
  const auto cache = open_cache(s);
  Array q({2, 4, 16}), k({1, 4, 16}), v({1, 4, 16}, 60000.0F), out({2, 4, 16});
  const std::vector<std::int64_t> positions{0, 1, 2, 3};
  cache->forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {4}}}, out.view());
  const std::uint64_t before = digest(cache->buffers());
  CHECK_THROWS_AS(cache->end_prefill(), Unsupported);
  CHECK(digest(cache->buffers()) == before);
}

TEST_CASE("xkv: a load into a used cache changes all of it or nothing", "[unit]") {
  const Scenario s = scenario("xkv:group_layers=2,rank_k=4,rank_v=4", 2, 6);
  const auto used = open_cache(s), open = open_cache(s), fresh = open_cache(s);
  run_prompt(*used, s);
  std::vector<NamedBuffer> saved;
  run_prompt(*open, s, [&] { saved = open->buffers(); });
  const std::uint64_t before = digest(used->buffers());
  auto broken = saved;
  for (NamedBuffer& b : broken)
    if (b.name == "layer1/v_rows/head0") b.bytes.clear();
  CHECK_THROWS_AS(used->load(broken), InvalidArgument);
  CHECK(digest(used->buffers()) == before);
  used->load(saved);
  fresh->load(saved);
  CHECK(run_decode(*used, s, 0, 1) == run_decode(*fresh, s, 0, 1));
  CHECK(digest(used->buffers()) == digest(fresh->buffers()));
}
