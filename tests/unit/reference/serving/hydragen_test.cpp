// hydragen: a group gives what each sequence gives alone; forks share, releases free, bytes follow the formula.
#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>

#include "core/errors.hpp"
#include "core/parallel.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

const Method& method() { return find_method("hydragen"); }

CacheShape shape_of(Dtype dtype, int kv_heads = 2) { return uniform_shape(2, 2 * kv_heads, kv_heads, 16, dtype, {.rotary_dim = 16}); }

/// Feeds `n` tokens to several sequences in one call a layer; `text[i]` names the inputs of sequences[i]. Returns the outputs.
std::vector<float> feed(KvGroup& group, const CacheShape& shape, const std::vector<int>& sequences, const std::vector<std::uint64_t>& text, std::int64_t n) {
  std::vector<float> all;
  std::vector<std::int64_t> first;
  for (const int s : sequences) first.push_back(group.length(s).value);
  for (const LayerClass& c : shape.classes)
    for (const int layer : c.layers) {
      std::vector<Inputs> in;
      std::vector<Array> out;
      std::vector<StepInput> steps;
      std::vector<View<float>> views;
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        in.push_back(inputs_for(shape, layer, first[i], n, text[i]));
        out.emplace_back(Array({c.q_heads, n, c.v_dim}));
      }
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        steps.push_back(in[i].step());
        views.push_back(out[i].view());
      }
      group.forward(layer, sequences, steps, views);
      for (const Array& o : out) all.insert(all.end(), o.values().begin(), o.values().end());
    }
  return all;
}

/// The same text of one sequence through the full cache: pieces (text, tokens) in order; returns outputs of the last piece.
std::vector<float> alone(const CacheShape& shape, const std::vector<std::pair<std::uint64_t, std::int64_t>>& pieces) {
  const auto cache = find_method("full").open({}, shape, {});
  std::vector<float> last;
  std::int64_t at = 0;
  for (const auto& [text, n] : pieces) {
    last.clear();
    for (const LayerClass& c : shape.classes)
      for (const int layer : c.layers) {
        const Inputs in = inputs_for(shape, layer, at, n, text);
        Array out({c.q_heads, n, c.v_dim});
        cache->forward(layer, in.step(), out.view());
        last.insert(last.end(), out.values().begin(), out.values().end());
      }
    at += n;
  }
  return last;
}

void check_near(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(std::abs(a[i] - b[i]) <= 1e-6F * std::max(1.0F, std::abs(b[i])) * 2.0F);
}

std::int64_t counted(const KvGroup& g) { return count_ledger(g.buffers()).total().value; }

}  // namespace

TEST_CASE("a sequence of a group gives the outputs that it gives alone, over a tree of shared parts", "[unit]") {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const CacheShape shape = shape_of(dtype);
    const auto g = method().open_group({}, shape);
    const int a = g->fork(-1);
    check_near(feed(*g, shape, {a}, {1}, 40), alone(shape, {{1, 40}}));
    const int b = g->fork(a), c = g->fork(a);
    check_near(feed(*g, shape, {a}, {1}, 3), alone(shape, {{1, 40}, {1, 3}}));
    check_near(feed(*g, shape, {b}, {2}, 7), alone(shape, {{1, 40}, {2, 7}}));
    const int d = g->fork(b);  // a third level
    CHECK(g->length(d).value == 47);
    const std::vector<float> both = feed(*g, shape, {c, d, b}, {3, 4, 2}, 2);
    std::vector<float> expected;
    const auto of_c = alone(shape, {{1, 40}, {3, 2}}), of_d = alone(shape, {{1, 40}, {2, 7}, {4, 2}}), of_b = alone(shape, {{1, 40}, {2, 7}, {2, 2}});
    const std::size_t half = of_c.size() / 2;  // outputs come layer by layer
    for (std::size_t layer = 0; layer < 2; ++layer)
      for (const auto* o : {&of_c, &of_d, &of_b})
        expected.insert(expected.end(), o->begin() + static_cast<std::ptrdiff_t>(layer * half), o->begin() + static_cast<std::ptrdiff_t>((layer + 1) * half));
    check_near(both, expected);
  }
}

TEST_CASE("a fork stores nothing twice, and a release frees what nobody shares", "[unit]") {
  const CacheShape shape = shape_of(Dtype::bf16);
  const std::int64_t row = 2 * 2 * 2 * 16 * 2;  // layers, kv heads, K and V, channels, bytes
  const auto g = method().open_group({}, shape);
  const int a = g->fork(-1);
  feed(*g, shape, {a}, {1}, 30);
  CHECK(counted(*g) == 30 * row + 4 * (1 + 1));
  const int b = g->fork(a), c = g->fork(a);
  CHECK(counted(*g) - 30 * row < 64);
  feed(*g, shape, {a, b, c}, {1, 2, 3}, 5);
  const auto rows = [&] { return count_ledger(g->buffers()).total().value - count_ledger(g->buffers()).of("tree", Side::both).value; };
  CHECK(rows() == 45 * row);
  g->release(b);
  CHECK(rows() == 40 * row);
  CHECK(g->length(c).value == 35);
  g->release(a);
  CHECK(rows() == 35 * row);
  g->release(c);
  CHECK(rows() == 0);
  CHECK_THROWS_AS(g->release(c), InvalidArgument);
  CHECK_THROWS_AS(g->length(b), InvalidArgument);
}

TEST_CASE("a group of one sequence, and parts without tokens, are the plain cache to the bit", "[unit]") {
  const CacheShape shape = shape_of(Dtype::bf16);
  const auto g = method().open_group({}, shape);
  const int a = g->fork(-1), b = g->fork(a);  // nothing to share yet
  CHECK(feed(*g, shape, {a}, {1}, 25) == alone(shape, {{1, 25}}));
  CHECK(feed(*g, shape, {b}, {2}, 25) == alone(shape, {{2, 25}}));
  CHECK(feed(*g, shape, {a}, {1}, 1) == alone(shape, {{1, 25}, {1, 1}}));
}

#ifndef KVATLAS_POISON_FORMULAS
TEST_CASE("the ledger formula of one shared prefix equals the live buffers", "[conformance]") {
  Random random(404);
  for (int draw_number = 0; draw_number < draws(); ++draw_number) {
    const CacheShape shape = uniform_shape(1 + static_cast<int>(random.below(2)), 2, 1 + static_cast<int>(random.below(2)), 8 << random.below(2),
                                           random.below(2) == 0 ? Dtype::bf16 : Dtype::f32, {.rotary_dim = 8});
    const int sequences = 1 + static_cast<int>(random.below(4));
    const std::int64_t shared = random.below(6), tail = 1 + random.below(5), generated = random.below(3);
    CAPTURE(draw_number, sequences, shared, tail, generated);
    const auto g = method().open_group({}, shape);
    std::vector<int> all;
    std::vector<std::uint64_t> text;
    if (shared > 0) {
      const int root = g->fork(-1);
      feed(*g, shape, {root}, {1}, shared);
      all.push_back(root);
      // A prefix that nobody shares is no shared part: a second sequence makes it one.
      for (int s = 1; s < std::max(2, sequences); ++s) all.push_back(g->fork(root));
    } else {
      for (int s = 0; s < sequences; ++s) all.push_back(g->fork(-1));
    }
    for (std::size_t s = 0; s < all.size(); ++s) text.push_back(s + 2);
    feed(*g, shape, all, text, tail + generated);
    const History h{.prompt = Tokens(shared + tail), .generated = Tokens(generated), .sequences = static_cast<int>(all.size()), .shared_prefix = Tokens(shared)};
    const Ledger formula = formula_ledger(method(), {}, shape, h), live = count_ledger(g->buffers());
    for (const char* component : {"rows", "shared_rows", "tree"})
      for (const Side side : {Side::key, Side::value, Side::both}) REQUIRE(live.of(component, side).value == formula.of(component, side).value);
    REQUIRE(live.total().value == formula.total().value);
  }
}
#endif

TEST_CASE("a group loaded from saved buffers goes on with the same bits, any flipped buffer is noticed, threads do not matter", "[conformance]") {
  const CacheShape shape = shape_of(Dtype::bf16);
  const auto make = [&] {
    auto g = method().open_group({}, shape);
    const int a = g->fork(-1);
    feed(*g, shape, {a}, {1}, 20);
    const int b = g->fork(a);
    feed(*g, shape, {a, b}, {1, 2}, 3);
    const int c = g->fork(b);
    feed(*g, shape, {a, b, c}, {1, 2, 3}, 2);
    return g;
  };
  const auto go_on = [&](KvGroup& g) { return feed(g, shape, {0, 1, 2}, {1, 2, 3}, 2); };
  const auto g = make();
  const auto saved = g->buffers();
  const auto expected = go_on(*g);
  const auto fresh = method().open_group({}, shape);
  fresh->load(saved);
  CHECK(go_on(*fresh) == expected);
  CHECK(digest(fresh->buffers()) == digest(g->buffers()));
  for (std::size_t b = 0; b < saved.size(); ++b) {
    CAPTURE(saved[b].name);
    Random random(b);
    bool noticed = false;
    for (int tries = 0; tries < 64 && !noticed; ++tries) {
      auto flipped = saved;
      flipped[b].bytes[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(flipped[b].bytes.size())))] ^= static_cast<std::byte>(1U << random.below(8));
      const auto other = method().open_group({}, shape);
      try {
        other->load(flipped);
        noticed = go_on(*other) != expected;
      } catch (const InvalidArgument&) {
        noticed = true;
      }
    }
    CHECK(noticed);
  }
  set_threads(1);
  CHECK(go_on(*make()) == expected);
  set_threads(2);
  CHECK(go_on(*make()) == expected);
}

TEST_CASE("steps and shapes that cannot be are refused, and nothing changes", "[unit]") {
  const CacheShape shape = shape_of(Dtype::bf16);
  CacheShape odd = shape;
  odd.classes[0].window = 8_tok;
  CHECK_THROWS_WITH(method().open_group({}, odd), "hydragen: a sliding window of 8 tokens cuts into shared prefixes; use full for such layers");
  odd = shape;
  odd.classes[0].kind = RowKind::latent;
  CHECK_THROWS_AS(method().open_group({}, odd), Unsupported);
  odd = shape;
  odd.classes[0].attention_sink = true;
  CHECK_THROWS_AS(method().open_group({}, odd), Unsupported);
  const auto g = method().open_group({}, shape);
  const int a = g->fork(-1);
  feed(*g, shape, {a}, {1}, 4);
  const std::uint64_t before = digest(g->buffers());
  Inputs in = inputs_for(shape, 0, 4, 1, 1);
  Array out({4, 1, 16}), other({4, 1, 16});
  const std::vector<StepInput> one{in.step()}, two{in.step(), in.step()};
  const std::vector<View<float>> view{out.view()}, views{out.view(), other.view()};
  CHECK_THROWS_WITH(g->forward(0, std::vector<int>{a, a}, two, views), "sequences names 0 twice");
  CHECK_THROWS_WITH(g->forward(0, std::vector<int>{a}, two, views), "sequences, steps, out have 1, 2, 2 entries, must be as many");
  CHECK_THROWS_WITH(g->forward(0, std::vector<int>{7}, one, view), "sequence is 7, must be one that fork() returned and nobody released");
  CHECK_THROWS_AS(g->fork(5), InvalidArgument);
  std::vector<StepInput> tree = one;
  tree[0].mask.kind = MaskKind::bidirectional;
  CHECK_THROWS_WITH(g->forward(0, std::vector<int>{a}, tree, view), "hydragen: only the causal mask is offered");
  // The second of two steps is wrong: the first must not have been stored.
  const int b = g->fork(a);
  const std::uint64_t forked = digest(g->buffers());
  Inputs nan = in;
  nan.k.values()[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(g->forward(0, std::vector<int>{a, b}, std::vector<StepInput>{in.step(), nan.step()}, views), InvalidArgument);
  CHECK(digest(g->buffers()) == forked);
  CHECK(forked != before);
  CHECK_THROWS_AS(g->load({}), InvalidArgument);
}

TEST_CASE("a saved tree in which sequences write to a common part is refused", "[unit]") {
  const CacheShape shape = shape_of(Dtype::bf16);
  const auto g = method().open_group({}, shape);
  const int a = g->fork(-1);
  feed(*g, shape, {a}, {1}, 4);
  const int b = g->fork(a);  // nodes: 0 shared, 1 of a, 2 of b
  feed(*g, shape, {a, b}, {1, 2}, 2);
  const auto saved = g->buffers();
  const auto with_second = [&](std::byte node) {
    auto changed = saved;
    for (NamedBuffer& buffer : changed)
      if (buffer.name == "tree/sequences") buffer.bytes[4] = node;
    return changed;
  };
  CHECK_THROWS_WITH(g->load(with_second(std::byte{1})), "tree/sequences[1] is 1, must not be the node of another sequence");
  CHECK_THROWS_WITH(g->load(with_second(std::byte{0})),
                    "tree/sequences[1] is 0, must not be the parent of a node: a sequence writes to a part of its own");
  CHECK(digest(g->buffers()) == digest(saved));
}

TEST_CASE("a prefix counts as shared while two sequences hold it, also in a loaded group", "[unit]") {
  const CacheShape shape = shape_of(Dtype::bf16);
  const auto g = method().open_group({}, shape), loaded = method().open_group({}, shape);
  const int a = g->fork(-1);
  feed(*g, shape, {a}, {1}, 4);
  const int b = g->fork(a);
  feed(*g, shape, {a, b}, {1, 2}, 2);
  const auto key_bytes = [](const KvGroup& group, const char* component) { return count_ledger(group.buffers()).of(component, Side::key).value; };
  const std::int64_t row = 2 * 2 * 16 * 2;  // layers, kv heads, channels, bytes
  CHECK(key_bytes(*g, "shared_rows") == 4 * row);
  CHECK(key_bytes(*g, "rows") == 4 * row);
  g->release(a);
  CHECK(key_bytes(*g, "shared_rows") == 0);
  CHECK(key_bytes(*g, "rows") == 6 * row);
  loaded->load(g->buffers());
  loaded->release(b);
  CHECK(key_bytes(*loaded, "rows") == 0);
}

TEST_CASE("a prompt's tails read the shared prefix once for all sequences", "[unit]") {
  const CacheShape shape = uniform_shape(1, 8, 2, 64);
  const Plan plan = method().prefill_plan({}, shape, {.prompt = 1100_tok, .sequences = 16, .shared_prefix = 1000_tok}, {});
  const auto find = [&](KernelId id) {
    std::vector<KernelCall> found;
    std::ranges::copy_if(plan.calls(), std::back_inserter(found), [id](const KernelCall& c) { return c.kernel == id; });
    return found;
  };
  const std::int64_t row = 64 * 2, partial = (64 + 2) * 4, queries = 16 * 8 * 100;
  const auto shared = find(KernelId::shared_attention), own = find(KernelId::prefill_attention), merge = find(KernelId::state_merge);
  REQUIRE(shared.size() == 1);
  CHECK(shared[0].traffic.read_bytes == 2 * 1000 * 2 * row + queries * row);
  CHECK(shared[0].traffic.write_bytes == queries * partial);
  CHECK(shared[0].operations.tensor_flops == 2.0 * static_cast<double>(queries) * 1000 * 128);
  REQUIRE(own.size() == 2);  // of the prefix, and of the tails over themselves
  CHECK(own[1].traffic.read_bytes == 16 * 2 * 100 * 2 * row + queries * row);
  CHECK(own[1].traffic.write_bytes == queries * partial);
  REQUIRE(merge.size() == 1);
  CHECK(merge[0].traffic.read_bytes == 2 * queries * partial);
  CHECK(merge[0].traffic.write_bytes == queries * row);
}

TEST_CASE("a decode step merges what its attentions wrote, a tail of one span included", "[unit]") {
  const CacheShape shape = uniform_shape(1, 8, 2, 64);
  for (const std::int64_t tail : {0, 1, 100, 1000}) {
    const Plan plan = method().decode_plan({}, shape, {.prompt = Tokens(1000 + tail), .sequences = 16, .shared_prefix = 1000_tok}, {});
    std::int64_t written = 0, merged = 0;
    for (const KernelCall& c : plan.calls()) {
      if (c.kernel == KernelId::shared_attention || c.kernel == KernelId::decode_attention) written += c.traffic.write_bytes;
      if (c.kernel == KernelId::state_merge) merged += c.traffic.read_bytes;
    }
    CHECK(written == merged);
    CHECK(merged == 16 * 8 * (4 + (tail + 255) / 256) * (64 + 2) * 4);
  }
}
