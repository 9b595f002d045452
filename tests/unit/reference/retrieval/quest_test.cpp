#include "reference/compose/recipe.hpp"
#include "core/errors.hpp"
#include "reference/primitives/sparse_attention.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

Scenario scenario(const std::string& params, const CacheShape& shape, std::int64_t prompt, std::int64_t decode = 0) {
  const MethodChoice choice = parse_choice(cat("quest:", params));
  Scenario s{.method = choice.method, .shape = shape, .row = choice.row};
  s.prompt = s.chunk = prompt;
  s.decode = decode;
  s.seed = 5;
  return s;
}

std::string refusal(const std::string& params, const CacheShape& shape) {
  const MethodChoice choice = parse_choice(params.empty() ? "quest" : cat("quest:", params));
  return why_not(*choice.method, choice.row, shape).value_or("");
}

}  // namespace

TEST_CASE("a decode step of the worked example attends to the better page and the open one", "[unit]") {
  const CacheShape shape = uniform_shape(1, 1, 1, 2, Dtype::f32);
  const MethodChoice choice = parse_choice("quest:page=2,budget=4,dense_layers=0");
  const auto cache = choice.method->open(choice.row, shape, {});
  const std::vector<float> keys{1, 0, 0, 1, -1, -1, 2, 0}, values{100, 0, 100, 0, 1, 0, 2, 0}, new_key{0, 0}, new_value{3, 0}, query{1, -2};
  const std::vector<std::int64_t> positions{0, 1, 2, 3, 4};
  const Array nothing({1, 4, 2});
  Array ignored({1, 4, 2}), out({1, 1, 2}), expected({2});
  cache->forward(0, {.q = nothing.view(), .k = {keys.data(), {1, 4, 2}}, .v = {values.data(), {1, 4, 2}}, .positions = {positions.data(), {4}}}, ignored.view());
  cache->end_prefill();
  cache->forward(0, {.q = {query.data(), {1, 1, 2}}, .k = {new_key.data(), {1, 1, 2}}, .v = {new_value.data(), {1, 1, 2}},
                     .positions = {positions.data() + 4, {1}}}, out.view());
  const std::vector<float> k{-1, -1, 2, 0, 0, 0}, v{1, 0, 2, 0, 3, 0};
  attend_gathered(shape.classes.front(), query, {k.data(), {3, 2}}, {v.data(), {3, 2}}, std::nullopt, expected.values());
  REQUIRE(out.values() == expected.values());
}

TEST_CASE("bounds cost one part in `page` of the cache, in layers that select", "[unit]") {
  const CacheShape shape = uniform_shape(4, 8, 4, 64);
  const auto bounds = [&](const std::string& params, std::int64_t context) {
    const MethodChoice choice = parse_choice(cat("quest:", params));
    const Ledger l = formula_ledger(*choice.method, choice.row, shape, {.prompt = Tokens(context)});
    return l.of("page_max", Side::key).value + l.of("page_min", Side::key).value;
  };
  REQUIRE(bounds("dense_layers=0", 4096) * 16 == dense_bytes(shape, 4096_tok).value);
  REQUIRE(bounds("dense_layers=2", 4096) * 32 == dense_bytes(shape, 4096_tok).value);
  REQUIRE(bounds("dense_layers=0", 17) == bounds("dense_layers=0", 32));  // the open page has its bounds
  REQUIRE(bounds("dense_layers=4", 4096) == 0);
}

TEST_CASE("attention reads the fraction 1/page + budget/context of a dense step", "[unit]") {
  const CacheShape shape = uniform_shape(1, 8, 8, 128);
  const MethodChoice choice = parse_choice("quest:budget=4096,dense_layers=0,last_page=python");
  const History h{.prompt = Tokens(65535), .generated = 1_tok};
  std::int64_t read = 0;
  const Plan plan = choice.method->decode_plan(choice.row, shape, h, {});
  for (const KernelCall& call : plan.calls())
    if (call.kernel == KernelId::page_score || call.kernel == KernelId::decode_attention) read += call.traffic.read_bytes;
  const double queries = 2.0 * 8 * 128 * 2;  // each of the two reads the query
  REQUIRE(static_cast<double>(read) - queries == static_cast<double>(dense_bytes(shape, 65536_tok).value) / 8);
}

TEST_CASE("pages that fit in the budget leave the dense plan", "[unit]") {
  const CacheShape shape = uniform_shape(4, 8, 2, 128);
  const MethodChoice choice = parse_choice("quest");
  for (const auto& [context, dense] : {std::pair{2048, true}, std::pair{2049, false}}) {
    bool scores = false;
    const Plan plan = choice.method->decode_plan(choice.row, shape, {.prompt = Tokens(context)}, {});
    for (const KernelCall& call : plan.calls()) scores = scores || call.kernel == KernelId::page_score;
    REQUIRE(scores == !dense);
  }
}

TEST_CASE("drafted tokens select as the same tokens one by one, and a rollback leaves no trace", "[unit]") {
  for (const char* params : {"page=4,budget=12,dense_layers=1", "page=7,budget=20,dense_layers=0,last_page=python,select=per_kv_head_max",
                             "page=1,budget=5,dense_layers=0,select=per_kv_head_mean", "page=16,budget=16,dense_layers=0"}) {
    CAPTURE(params);
    const Scenario s = scenario(params, uniform_shape(2, 4, 2, 16, Dtype::bf16, {.rotary_dim = 16}), 61);
    const auto one_by_one = open_cache(s), drafted = open_cache(s);
    run_prompt(*one_by_one, s);
    run_prompt(*drafted, s);
    const std::uint64_t before = digest(drafted->buffers());
    for (const int layer : {0, 1}) {
      const Inputs all = inputs_for(s.shape, layer, 61, 9, s.seed);
      Array together({4, 9, 16}), alone({4, 1, 16});
      drafted->forward(layer, all.step(), together.view());
      for (std::int64_t i = 0; i < 9; ++i) {
        one_by_one->forward(layer, inputs_for(s.shape, layer, 61 + i, 1, s.seed).step(), alone.view());
        for (int h = 0; h < 4; ++h) REQUIRE(std::ranges::equal(alone.view().row(h, 0), together.view().row(h, i)));
      }
    }
    REQUIRE(digest(one_by_one->buffers()) == digest(drafted->buffers()));
    drafted->crop(61_tok);
    REQUIRE(digest(drafted->buffers()) == before);
  }
}

TEST_CASE("a branch of a tree sees its own page and not its neighbour's keys", "[unit]") {
  const Scenario s = scenario("page=4,budget=8,dense_layers=0", uniform_shape(1, 2, 1, 16, Dtype::f32), 41);
  const std::uint8_t tree[9] = {1, 0, 0, 1, 1, 0, 1, 0, 1};
  const auto branching = open_cache(s), straight = open_cache(s);
  run_prompt(*branching, s);
  run_prompt(*straight, s);
  Inputs nodes = inputs_for(s.shape, 0, 41, 3, s.seed);
  StepInput step = nodes.step();
  step.mask = {.kind = MaskKind::tree, .tree = {tree, {3, 3}}};
  Array out({2, 3, 16}), alone({2, 2, 16});
  branching->forward(0, step, out.view());
  // Token 2 alone behind token 0: the same rows, one slot earlier.
  Inputs pair{.q = Array({2, 2, 16}), .k = Array({1, 2, 16}), .v = Array({1, 2, 16}), .positions = {41, 43}};
  for (const auto& [from, to] : {std::pair{&nodes.q, &pair.q}, std::pair{&nodes.k, &pair.k}, std::pair{&nodes.v, &pair.v}})
    for (std::int64_t h = 0; h < to->view().dim(0); ++h)
      for (std::int64_t i = 0; i < 2; ++i) std::ranges::copy(from->view().row(h, 2 * i), to->view().row(h, i).begin());
  straight->forward(0, pair.step(), alone.view());
  for (int h = 0; h < 2; ++h) REQUIRE(std::ranges::equal(alone.view().row(h, 1), out.view().row(h, 2)));
}

TEST_CASE("a shared choice differs from a choice of every head, and a mean from a maximum", "[unit]") {
  std::vector<std::uint64_t> seen;
  for (const char* select : {"per_q_head", "per_kv_head_mean", "per_kv_head_max"}) {
    const Scenario s = scenario(cat("page=4,budget=12,dense_layers=0,select=", select), uniform_shape(1, 8, 2, 16), 90, 4);
    const auto cache = open_cache(s);
    run_prompt(*cache, s);
    seen.push_back(digest(run_decode(*cache, s, 0, 4)));
  }
  REQUIRE(seen[0] != seen[1]);
  REQUIRE(seen[0] != seen[2]);
  REQUIRE(seen[1] != seen[2]);
}

TEST_CASE("crop reaches into the prompt and restores the bounds of the page that it opens", "[unit]") {
  const CacheShape shape = uniform_shape(1, 2, 1, 16);
  const Scenario longer = scenario("page=8,budget=16,dense_layers=0", shape, 60), shorter = scenario("page=8,budget=16,dense_layers=0", shape, 35);
  const auto cropped = open_cache(longer), fresh = open_cache(shorter);
  run_prompt(*cropped, longer);
  run_prompt(*fresh, shorter);
  cropped->crop(35_tok);
  REQUIRE(digest(cropped->buffers()) == digest(fresh->buffers()));
  REQUIRE_THROWS_WITH(cropped->crop(Tokens(-1)), "length is -1, must be >= 0");
}

TEST_CASE("bounds that do not belong to the keys are refused", "[unit]") {
  const Scenario s = scenario("page=4,budget=8,dense_layers=0", uniform_shape(1, 2, 1, 16), 20);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  auto saved = cache->buffers();
  for (NamedBuffer& b : saved)
    if (b.name == "layer0/page_max/head0") b.bytes[3] ^= std::byte{1};
  REQUIRE_THROWS_WITH(open_cache(s)->load(saved), "buffer layer0/page_max/head0 does not hold the bounds of its pages' keys");
}

TEST_CASE("scores that overflow to NaN are refused and leave the cache as it was", "[unit]") {
  const Scenario s = scenario("page=2,budget=4,dense_layers=0", uniform_shape(1, 1, 1, 16, Dtype::f32), 9);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  Inputs huge = inputs_for(s.shape, 0, 9, 1, s.seed);
  for (std::size_t c = 0; c < 16; ++c) {
    huge.k.values()[c] = 3e38F;
    huge.q.values()[c] = c < 8 ? 3e38F : -3e38F;  // infinities of both signs meet in the score of a page of such keys
  }
  Array out({1, 1, 16});
  bool refused = false;
  for (int step = 0; step < 5 && !refused; ++step) {  // pages are scored once they are closed
    const std::uint64_t before = digest(cache->buffers());
    try {
      cache->forward(0, huge.step(), out.view());
    } catch (const InvalidArgument& e) {
      REQUIRE_THAT(std::string(e.what()), contains_text("is NaN"));
      REQUIRE(digest(cache->buffers()) == before);
      refused = true;
    }
  }
  REQUIRE(refused);
}

TEST_CASE("quest says which shapes and parameters it cannot serve", "[unit]") {
  CacheShape shape = uniform_shape(4, 8, 2, 64);
  REQUIRE(refusal("", shape).empty());
  REQUIRE(refusal("page=32,budget=31", shape) == "budget is 31, must be at least one page (32)");
  REQUIRE(refusal("page=32,budget=31,last_page=python", shape).empty());
  shape.classes.front().window = 512_tok;
  REQUIRE(refusal("", shape) == "a sliding window of 512 tokens leaves nothing to select from; use full for such layers");
  const MethodChoice choice = parse_choice("quest");
  REQUIRE_THROWS_WITH(choice.method->open(choice.row, shape, {}),
                      "quest: a sliding window of 512 tokens leaves nothing to select from; use full for such layers");
}
