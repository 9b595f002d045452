#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/sparse_attention.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

Scenario scenario(const std::string& params, const CacheShape& shape, std::int64_t prompt) {
  const MethodChoice choice = parse_choice(cat("double_sparse:", params));
  Scenario s{.method = choice.method, .shape = shape, .row = choice.row};
  s.prompt = s.chunk = prompt;
  s.seed = 9;
  return s;
}

const NamedBuffer& buffer(const std::vector<NamedBuffer>& all, const std::string& name) { return find_buffer(all, name); }

std::vector<int> channels_of(const KvCache& cache, int layer) {
  std::vector<int> ids;
  const auto all = cache.buffers();
  const auto& bytes = buffer(all, cat("layer", layer, "/channels")).bytes;
  for (std::size_t i = 0; i < bytes.size(); i += 2) ids.push_back(std::to_integer<int>(bytes[i]) + 256 * std::to_integer<int>(bytes[i + 1]));
  return ids;
}

TensorMap file_of(const KvCache& cache, const std::vector<int>& layers, std::int64_t heads) {
  TensorMap file;
  for (const int l : layers) {
    const std::vector<int> ids = channels_of(cache, l);
    file[cat("layer", l, ".channels")] = {.dims = {heads, static_cast<std::int64_t>(ids.size()) / heads}, .values = {ids.begin(), ids.end()}};
  }
  return file;
}

std::string opening(const Scenario& s, const TensorMap& file) {
  try {
    s.method->open(s.row, s.shape, {.trained = &file});
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("uncoded labels of all channels keep exactly the tokens with the highest logits", "[unit]") {
  for (const std::int64_t heavy : {1, 5, 40, 61, 62}) {
    const Scenario s = scenario(cat("dense_layers=0,group_factor=1,label_bits=16,heavy=", heavy), uniform_shape(1, 4, 2, 32, Dtype::f32), 61);
    const auto cache = open_cache(s);
    run_prompt(*cache, s);
    const Inputs all = inputs_for(s.shape, 0, 0, 62, s.seed), last = inputs_for(s.shape, 0, 61, 1, s.seed);
    Array out({4, 1, 32}), expected({1, 32});
    cache->forward(0, last.step(), out.view());
    for (int h = 0; h < 4; ++h) {
      // Channels come in another order, so logits may differ by rounding; the margin of the kept set is far above that.
      std::vector<float> x(62);
      logits(last.q.view().row(h, 0), all.k.view()[h / 2], 1.0F, x);
      const Slots best = top_k(x, std::min<std::int64_t>(heavy, 62));
      attend_listed(s.shape.classes.front(), last.q.view().row(h, 0), all.k.view()[h / 2], all.v.view()[h / 2], best, std::nullopt, expected.values());
      REQUIRE(std::ranges::equal(expected.values(), out.view().row(h, 0)));
    }
  }
}

TEST_CASE("a prompt ranks channels by the statistic that was asked for", "[unit]") {
  // Channel 3 of the queries, 1 of the keys and 2 of the products is the largest.
  const CacheShape shape = uniform_shape(1, 2, 1, 4, Dtype::f32);
  const std::vector<float> q{0, 0, 2, 3, 0, 0, -2, -3, 0, 1, 2, 3, 0, 0, 2, 3}, k{0, -9, 4, 0, 1, -9, 4, 0};
  const std::vector<std::int64_t> positions{0, 1};
  for (const auto& [statistic, first] : {std::pair{"q", 3}, std::pair{"k", 1}, std::pair{"qk", 2}}) {
    CAPTURE(statistic);
    const Scenario s = scenario(cat("dense_layers=0,group_factor=4,statistic=", statistic), shape, 2);
    const auto cache = open_cache(s);
    Array out({2, 2, 4});
    cache->forward(0, {.q = {q.data(), {2, 2, 4}}, .k = {k.data(), {1, 2, 4}}, .v = {k.data(), {1, 2, 4}}, .positions = {positions.data(), {2}}}, out.view());
    cache->end_prefill();
    REQUIRE(channels_of(*cache, 0) == std::vector<int>{first});
  }
}

TEST_CASE("a channel file with the prompt's channels gives the bits of the prompt's ranking", "[unit]") {
  for (const char* owner : {"per_kv_head", "per_q_head"}) {
    const Scenario s = scenario(cat("dense_layers=1,heavy=9,group_factor=4,label_bits=3,labels=", owner), uniform_shape(3, 4, 2, 32, Dtype::bf16, {.rotary_dim = 32}), 50);
    const auto ranked = open_cache(s);
    run_prompt(*ranked, s);
    const TensorMap file = file_of(*ranked, {1, 2}, std::string(owner) == "per_q_head" ? 4 : 2);
    const auto given = s.method->open(s.row, s.shape, {.trained = &file});
    run_prompt(*given, s);
    REQUIRE(digest(given->buffers()) == digest(ranked->buffers()));
    REQUIRE(run_decode(*given, s, 0, 5) == run_decode(*ranked, s, 0, 5));
    given->crop(20_tok);  // the file's channels do not depend on the prompt
    REQUIRE(given->kept(1, 0) == 20_tok);
    REQUIRE_THROWS_WITH(ranked->crop(20_tok), "crop: the channels were ranked by tokens that would be taken back");
    ranked->crop(50_tok);
    REQUIRE(ranked->kept(1, 0) == 50_tok);
  }
}

TEST_CASE("a bad channel file is refused with its tensor's name", "[unit]") {
  const Scenario s = scenario("dense_layers=1,group_factor=4", uniform_shape(2, 2, 1, 8), 4);
  REQUIRE(opening(s, {}) == "trained file has no tensor \"layer1.channels\"");
  const auto with = [&](std::vector<std::int64_t> dims, std::vector<float> values) {
    TensorMap file;
    file["layer1.channels"] = {.dims = std::move(dims), .values = std::move(values)};
    return opening(s, file);
  };
  REQUIRE(with({1, 2}, {7, 0}).empty());
  REQUIRE(with({1, 8}, {7, 0, 1, 2, 3, 4, 5, 6}).empty());
  REQUIRE(with({2, 2}, {7, 0, 1, 2}) == "tensor \"layer1.channels\" is [2, 2], must be [1, any]");
  REQUIRE(with({1, 1}, {7}) == "tensor \"layer1.channels\" names 1 channels a head, must name at least 2");
  REQUIRE(with({1, 2}, {8, 0}) == "tensor \"layer1.channels\" holds 8, must hold channels from 0 to 7");
  REQUIRE(with({1, 2}, {0.5F, 0}) == "tensor \"layer1.channels\" holds 0.5, must hold channels from 0 to 7");
  REQUIRE(with({1, 2}, {3, 3}) == "layer1.channels names channel 3 twice in one head");
}

TEST_CASE("labels, channel table and the statistic of the prompt are counted", "[unit]") {
  const CacheShape shape = uniform_shape(4, 8, 2, 128, Dtype::f16);
  const MethodChoice choice = parse_choice("double_sparse");
  const Ledger l = formula_ledger(*choice.method, choice.row, shape, {.prompt = 1000_tok, .generated = 24_tok, .sequences = 3});
  REQUIRE(l.of("labels", Side::key).value == 3 * 2 * 2 * 1024 * (16 + 4));  // 128 bits, minimum and maximum
  REQUIRE(l.of("channels", Side::key).value == 3 * 2 * 2 * 64 * 2);
  REQUIRE(l.prefill().value == 3 * dense_bytes(shape, 1000_tok).value + 3 * 2 * 2 * 128 * 8);
  const MethodChoice accuracy = parse_choice("double_sparse:labels=per_q_head");
  REQUIRE(formula_ledger(*accuracy.method, accuracy.row, shape, {.prompt = 1000_tok}).of("labels", Side::key).value == 8 * 2 * 1000 * 20);
}

TEST_CASE("a step reads labels of every token and the union of the heads' lists", "[unit]") {
  const CacheShape shape = uniform_shape(1, 8, 8, 128, Dtype::f16);
  const MethodChoice choice = parse_choice("double_sparse:heavy=4096,dense_layers=0,label_bits=16,group_factor=4");
  std::int64_t read = 0;
  const Plan plan = choice.method->decode_plan(choice.row, shape, {.prompt = Tokens(65535), .generated = 1_tok}, {});
  for (const KernelCall& call : plan.calls()) {
    if (call.kernel == KernelId::label_score) read += call.traffic.read_bytes - 8 * 32 * 4;   // the query's channels
    if (call.kernel == KernelId::decode_attention) read += call.traffic.read_bytes - 8 * 128 * 2;  // the query
  }
  // (r b) / (2 d 16) + heavy / context = 1/8 + 1/16
  REQUIRE(read * 16 == 3 * dense_bytes(shape, 65536_tok).value);
  const Plan dense = choice.method->decode_plan(choice.row, shape, {.prompt = 4096_tok}, {});
  for (const KernelCall& call : dense.calls()) REQUIRE(call.kernel != KernelId::label_score);
}

TEST_CASE("drafted tokens select as the same tokens one by one", "[unit]") {
  for (const char* params : {"heavy=7,dense_layers=0,group_factor=2,label_bits=2", "heavy=20,dense_layers=1,group_factor=1,label_bits=16,labels=per_q_head"}) {
    CAPTURE(params);
    const Scenario s = scenario(params, uniform_shape(2, 4, 2, 16, Dtype::bf16, {.rotary_dim = 16}), 33);
    const auto one_by_one = open_cache(s), drafted = open_cache(s);
    run_prompt(*one_by_one, s);
    run_prompt(*drafted, s);
    const std::uint64_t before = digest(drafted->buffers());
    for (const int layer : {0, 1}) {
      const Inputs all = inputs_for(s.shape, layer, 33, 6, s.seed);
      Array together({4, 6, 16}), alone({4, 1, 16});
      drafted->forward(layer, all.step(), together.view());
      for (std::int64_t i = 0; i < 6; ++i) {
        one_by_one->forward(layer, inputs_for(s.shape, layer, 33 + i, 1, s.seed).step(), alone.view());
        for (int h = 0; h < 4; ++h) REQUIRE(std::ranges::equal(alone.view().row(h, 0), together.view().row(h, i)));
      }
    }
    REQUIRE(digest(one_by_one->buffers()) == digest(drafted->buffers()));
    drafted->crop(33_tok);
    REQUIRE(digest(drafted->buffers()) == before);
  }
}

TEST_CASE("a cache saved in the middle of its prompt goes on with the same bits", "[unit]") {
  const Scenario s = scenario("heavy=6,dense_layers=0,group_factor=4", uniform_shape(1, 2, 1, 32), 40);
  const auto whole = open_cache(s);
  run_prompt(*whole, s);
  const auto first = open_cache(s), second = open_cache(s);
  Array out({2, 20, 32});
  first->forward(0, inputs_for(s.shape, 0, 0, 20, s.seed).step(), out.view());
  second->load(first->buffers());
  REQUIRE_THROWS_WITH(second->crop(10_tok), "crop: the channels were ranked by tokens that would be taken back");
  second->forward(0, inputs_for(s.shape, 0, 20, 20, s.seed).step(), out.view());
  second->end_prefill();
  REQUIRE(digest(second->buffers()) == digest(whole->buffers()));
  REQUIRE(run_decode(*second, s, 0, 4) == run_decode(*whole, s, 0, 4));
}

TEST_CASE("labels and channels that do not belong to the keys are refused", "[unit]") {
  const Scenario s = scenario("heavy=4,dense_layers=0,group_factor=8,label_bits=4", uniform_shape(1, 2, 1, 16), 20);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  const auto refuses = [&](const std::string& name, std::size_t at, std::uint8_t value) -> std::string {
    auto saved = cache->buffers();
    for (NamedBuffer& b : saved)
      if (b.name == name) b.bytes[at] ^= std::byte{value};
    try {
      open_cache(s)->load(saved);
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "";
  };
  REQUIRE(refuses("layer0/labels/head0", 0, 1) == "buffer layer0/labels/head0 does not hold the labels of the keys");
  REQUIRE_THAT(refuses("layer0/channels", 0, 0x10), contains_text("must be below head_dim (16)"));
}

TEST_CASE("double_sparse says which shapes and parameters it cannot serve", "[unit]") {
  const auto refusal = [](const std::string& params, const CacheShape& shape) {
    const MethodChoice choice = parse_choice(cat("double_sparse:", params));
    return why_not(*choice.method, choice.row, shape).value_or("");
  };
  CacheShape shape = uniform_shape(4, 8, 2, 64);
  REQUIRE(refusal("label_bits=8", shape).empty());
  REQUIRE(refusal("label_bits=16", shape).empty());
  REQUIRE(refusal("label_bits=12", shape) == "label_bits is 12, must be 1 to 8, or 16 for labels in the cache's dtype");
  REQUIRE(refusal("group_factor=3", shape) == "group_factor is 3, must divide head_dim (64)");
  shape.classes.front().window = 512_tok;
  REQUIRE(refusal("heavy=8", shape) == "a sliding window of 512 tokens leaves nothing to select from; use full for such layers");
}
