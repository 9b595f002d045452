// specpv: full verification is plain decoding, the step rule, partial passes that hold everything, rollback, bytes, refusals.
#include <bit>
#include <cmath>
#include <set>

#include "core/errors.hpp"
#include "reference/primitives/speculation.hpp"
#include "reference/registry.hpp"
#include "reference/speculation/specpv/cache.hpp"
#include "tests/catch.hpp"
#include "tests/support/tiny_model.hpp"

using namespace kvatlas;
using namespace kvatlas::test;
namespace pv = kvatlas::partial_verify;

namespace {

const Method& method() { return find_method("specpv"); }

struct Setting {
  int block = 4, sinks = 1, retrieved = 2, window = 2, buffer = 6, tree = 8, depth = 4, score = 0, partial = 1;
  ParamRow row() const {
    return {double(block), double(sinks), double(retrieved), double(window), double(buffer), double(tree), double(depth), double(score), double(partial)};
  }
};

CacheShape small_shape(Dtype dtype = Dtype::bf16, int layers = 2) { return uniform_shape(layers, 4, 2, 16, dtype, {.rotary_dim = 16}); }

std::unique_ptr<Speculator> open(const Setting& s, const TargetModel& target, const TinyDraft& draft, const SpeculationOptions& options = {}) {
  return method().speculate(s.row(), target, tiny_draft(target, draft), options);
}

/// The first `count` tokens that the speculator emits.
std::vector<TokenId> emit(Speculator& s, const std::vector<TokenId>& prompt, std::int64_t count) {
  s.start(prompt);
  std::vector<TokenId> text;
  while (static_cast<std::int64_t>(text.size()) < count)
    for (const TokenId t : s.step()) text.push_back(t);
  text.resize(static_cast<std::size_t>(count));
  return text;
}

std::vector<TokenId> plainly(const TargetModel& target, const std::vector<TokenId>& prompt, std::int64_t count) {
  const auto cache = find_method("full").open({}, target.shape, {});
  return decode_greedily(target, *cache, prompt, count);
}

std::string refusal(const Setting& s, const CacheShape& shape, SpeculationOptions options = {}, int vocabulary = 5) {
  try {
    TargetModel target = tiny_model(shape, std::max(1, vocabulary), 1);
    target.vocabulary = vocabulary;
    method().speculate(s.row(), target, {.propose = [](std::span<const TokenId>, int) { return DraftTree{}; }}, options);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("greedy text under full verification is the text of plain decoding", "[unit]") {
  std::set<std::int64_t> rounds;
  for (const std::uint64_t seed : {1, 2, 3})
    for (const Dtype dtype : {Dtype::bf16, Dtype::f32})
      for (const int width : {1, 2}) {
        CAPTURE(seed, name_of(dtype), width);
        const TargetModel target = tiny_model(small_shape(dtype), 37, seed);
        const auto prompt = random_prompt(static_cast<std::int64_t>(1 + 11 * seed), 37, seed);
        const auto expected = plainly(target, prompt, 60);
        REQUIRE(std::set<TokenId>(expected.begin(), expected.end()).size() > 4);  // no text that any rule would give
        const auto s = open({.partial = 0}, target, {.width = width, .seed = seed});
        CHECK(emit(*s, prompt, 60) == expected);
        const SpeculationStats stats = s->stats();
        CHECK(stats.partial_steps == 0);
        CHECK(stats.emitted == stats.accepted + stats.full_steps);
        CHECK(stats.accepted > stats.full_steps / 2);
        CHECK(stats.accepted < stats.drafted);
        rounds.insert(stats.full_steps);
      }
  CHECK(rounds.size() > 2);
}

TEST_CASE("a buffer that no accepted token fits, or a short text, keeps partial verification lossless", "[unit]") {
  const TargetModel target = tiny_model(small_shape(), 37, 5);
  const auto prompt = random_prompt(30, 37, 6);
  const auto expected = plainly(target, prompt, 50);
  const auto tight = open({.buffer = 0}, target, {});
  CHECK(emit(*tight, prompt, 50) == expected);
  CHECK(tight->stats().partial_steps == 0);
  const auto wide = open({.retrieved = 40}, target, {});
  CHECK(emit(*wide, prompt, 50) == expected);
  CHECK(wide->stats().partial_steps == 0);
}

TEST_CASE("steps follow the rule: full up to the static size, refresh, then partial while the buffer has room", "[unit]") {
  const Setting setting{.buffer = 9};
  const TargetModel target = tiny_model(small_shape(), 37, 8);
  const auto s = open(setting, target, {.width = 2});
  s->start(random_prompt(10, 37, 9));
  std::int64_t text = 9, behind = 0, missing = 0, partial = 0, refreshed_at = 0;
  bool refreshed = false;
  for (int round = 0; round < 40; ++round) {
    const SpeculationStats before = s->stats();
    const auto emitted = static_cast<std::int64_t>(s->step().size());
    const bool was_partial = s->stats().partial_steps > before.partial_steps;
    const bool due = text > 20 && refreshed && behind <= setting.buffer;
    CHECK(was_partial == due);
    if (due) {
      behind += emitted;
      missing += emitted;
      ++partial;
    } else {
      refreshed = text > 20;
      if (refreshed) refreshed_at = text;
      behind = emitted;
      missing = 0;
    }
    text += emitted;
    const ContentCounts counts = s->cache().content_counts();
    CHECK(counts.get("missing", -1) == missing);
    CHECK(counts.get("blocks", -1) == (refreshed ? (refreshed_at - 12) / 4 : 0));
    CHECK(s->cache().kept(0, 0).value == text);
  }
  CHECK(partial > 5);
  CHECK(s->stats().full_steps > 5);
}

TEST_CASE("a partial cache that holds every block gives the bits of the full one", "[unit]") {
  const CacheShape shape = small_shape(Dtype::bf16, 1);
  for (const pv::Score score : {pv::Score::code, pv::Score::quest}) {
    const pv::Layout layout{.block = 4, .sinks = 4, .retrieved_blocks = 5, .window = 8, .buffer = 6, .tree = 3, .score = score};
    pv::Cache cache(shape, layout);
    const auto full = find_method("full").open({}, shape, {});
    const auto both = [&](std::int64_t first, std::int64_t n, const AttentionMask& mask) {
      const Inputs in = inputs_for(shape, 0, first, n, 3);
      StepInput step = in.step();
      step.mask = mask;
      Array a({4, n, 16}), b({4, n, 16});
      cache.forward(0, step, a.view());
      full->forward(0, step, b.view());
      for (std::size_t i = 0; i < a.values().size(); ++i) REQUIRE(std::bit_cast<std::uint32_t>(a.values()[i]) == std::bit_cast<std::uint32_t>(b.values()[i]));
    };
    both(0, layout.fixed(), {});
    const auto mask = verify_mask({.tokens = {0, 0, 0}, .parent = {-1, 0, 1}, .probability = {}}, 0);
    const AttentionMask chain{.kind = MaskKind::tree, .tree = {mask.data(), {4, 4}}};
    cache.begin(pv::Verify::refresh, 0);
    both(layout.fixed(), 4, chain);
    cache.accept(std::vector<std::int64_t>{0, 1, 2, 3});
    cache.begin(pv::Verify::partial, 0);
    both(layout.fixed() + 4, 4, chain);
    // The second and third are refused; the partial cache forgets them as the full one does.
    cache.accept(std::vector<std::int64_t>{0});
    full->crop(Tokens(layout.fixed() + 5));
    cache.begin(pv::Verify::partial, 0);
    both(layout.fixed() + 5, 4, chain);
  }
}

TEST_CASE("an accepted path with gaps is compacted in both caches", "[unit]") {
  const CacheShape shape = small_shape(Dtype::bf16, 1);
  const pv::Layout layout{.block = 4, .sinks = 4, .retrieved_blocks = 2, .window = 4, .buffer = 9, .tree = 3};
  // Tree: root, two children, a grandchild under the second. Path root, second child, grandchild.
  const DraftTree tree{.tokens = {0, 0, 0}, .parent = {-1, -1, 1}, .probability = {}};
  const auto mask = verify_mask(tree, 0);
  const auto run = [&](pv::Verify how, const std::vector<std::int64_t>& tokens) {
    pv::Cache cache(shape, layout);
    const auto feed = [&](std::int64_t first, std::vector<std::int64_t> which, const AttentionMask& m) {
      const auto n = static_cast<std::int64_t>(which.size());
      Inputs in = inputs_for(shape, 0, first, 8, 5);  // token t of the draft has the inputs of place first + t
      Array q({4, n, 16}), k({2, n, 16}), v({2, n, 16}), out({4, n, 16});
      for (std::int64_t i = 0; i < n; ++i)
        for (int h = 0; h < 4; ++h) {
          std::ranges::copy(in.q.view().row(h, which[static_cast<std::size_t>(i)]), q.view().row(h, i).begin());
          if (h > 1) continue;
          std::ranges::copy(in.k.view().row(h, which[static_cast<std::size_t>(i)]), k.view().row(h, i).begin());
          std::ranges::copy(in.v.view().row(h, which[static_cast<std::size_t>(i)]), v.view().row(h, i).begin());
        }
      std::vector<std::int64_t> positions;
      for (const std::int64_t t : which) positions.push_back(first + (t == 0 ? 0 : t == 3 ? 2 : 1));
      cache.forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {n}}, .mask = m}, out.view());
    };
    const Inputs prompt = inputs_for(shape, 0, 0, 18, 5);
    Array out({4, 18, 16});
    cache.forward(0, prompt.step(), out.view());
    if (how == pv::Verify::partial) {
      const std::uint8_t one = 1;
      cache.begin(pv::Verify::refresh, 0);
      feed(18, {0}, {.kind = MaskKind::tree, .tree = {&one, {1, 1}}});
      cache.accept(std::vector<std::int64_t>{0});
    }
    const std::int64_t first = how == pv::Verify::partial ? 19 : 18;
    cache.begin(how, 0);
    if (tokens.size() == 4) {
      feed(first, tokens, {.kind = MaskKind::tree, .tree = {mask.data(), {4, 4}}});
      cache.accept(std::vector<std::int64_t>{0, 2, 3});
    } else {
      const auto chain = verify_mask({.tokens = {0, 0}, .parent = {-1, 0}, .probability = {}}, 0);
      feed(first, tokens, {.kind = MaskKind::tree, .tree = {chain.data(), {3, 3}}});
      cache.accept(std::vector<std::int64_t>{0, 1, 2});
    }
    return digest(cache.buffers());
  };
  for (const pv::Verify how : {pv::Verify::full, pv::Verify::partial}) CHECK(run(how, {0, 1, 2, 3}) == run(how, {0, 2, 3}));
}

TEST_CASE("crop after a draft leaves the buffers as if nothing had been drafted", "[unit]") {
  const CacheShape shape = small_shape();
  const pv::Layout layout{.block = 4, .sinks = 4, .retrieved_blocks = 2, .window = 4, .buffer = 9, .tree = 3};
  pv::Cache cache(shape, layout);
  const auto mask = verify_mask({.tokens = {0, 0, 0}, .parent = {-1, -1, 0}, .probability = {}}, 0);
  const AttentionMask draft{.kind = MaskKind::tree, .tree = {mask.data(), {4, 4}}};
  const auto feed = [&](std::int64_t first, std::int64_t n, const AttentionMask& m) {
    for (int l = 0; l < 2; ++l) {
      const Inputs in = inputs_for(shape, l, first, n, 4);
      StepInput step = in.step();
      step.mask = m;
      Array out({4, n, 16});
      cache.forward(l, step, out.view());
    }
  };
  feed(0, 18, {});
  std::uint64_t before = digest(cache.buffers());
  cache.begin(pv::Verify::full, 0);
  feed(18, 4, draft);
  REQUIRE(digest(cache.buffers()) != before);
  cache.crop(18_tok);
  CHECK(digest(cache.buffers()) == before);
  cache.begin(pv::Verify::refresh, 0);
  feed(18, 4, draft);
  cache.accept(std::vector<std::int64_t>{0, 1});
  before = digest(cache.buffers());
  cache.begin(pv::Verify::partial, 0);
  feed(20, 4, draft);
  cache.crop(20_tok);
  CHECK(digest(cache.buffers()) == before);
  cache.begin(pv::Verify::partial, 0);
  feed(20, 4, draft);
  cache.abandon();
  CHECK(digest(cache.buffers()) == before);
  CHECK_THROWS_WITH(cache.crop(17_tok), "crop to 17: the partial cache was made at 18 tokens, and the one before it is gone");
  CHECK(digest(cache.buffers()) == before);
  cache.crop(19_tok);
  CHECK(cache.buffered() == 1);
  CHECK(cache.full_tokens() == 19);
  CHECK_THROWS_AS(cache.crop(Tokens(-1)), InvalidArgument);
  // Accepted tokens that only the partial cache has: plain steps must wait for a full pass.
  cache.begin(pv::Verify::partial, 0);
  feed(19, 4, draft);
  cache.accept(std::vector<std::int64_t>{0});
  CHECK_THROWS_AS(feed(20, 1, {}), Unsupported);
}

TEST_CASE("a model that fails in the middle of a step leaves the text and the next step as they were", "[unit]") {
  TargetModel target = tiny_model(small_shape(), 37, 12);
  auto fail = std::make_shared<bool>(false);
  const auto forward = target.forward;
  TargetModel fragile = target;
  fragile.forward = [forward, fail](std::span<const TokenId> t, View<const std::int64_t> p, const AttentionMask& m, KvCache& c, View<float> l) {
    forward(t, p, m, c, l);
    if (*fail) throw IoError("the model went away");
  };
  for (const Setting& setting : {Setting{.partial = 0}, Setting{.buffer = 9}}) {
    const auto s = method().speculate(setting.row(), fragile, tiny_draft(target, {}), {});
    s->start(random_prompt(12, 37, 2));
    for (int i = 0; i < 12; ++i) {
      *fail = true;
      CHECK_THROWS_AS(s->step(), IoError);
      *fail = false;
      CHECK(s->step().size() >= 1);
      CHECK(s->cache().kept(0, 0).value == 11 + s->stats().emitted);
    }
  }
}

TEST_CASE("sampled text follows the target's distribution, from chains that were drawn and trees that were chosen", "[unit]") {
  const TargetModel target = tiny_model(uniform_shape(1, 2, 1, 8, Dtype::f32, {.rotary_dim = 8}), 3, 21, 2.0F);
  const std::vector<TokenId> prompt{2, 0, 1, 1, 0};
  Array logits({5, 3});
  const std::int64_t positions[] = {0, 1, 2, 3, 4};
  const auto full = find_method("full").open({}, target.shape, {});
  target.forward(prompt, {positions, {5}}, {}, *full, logits.view());
  const auto p = probabilities(logits.view().row(4), 1.3F);
  for (const bool sampled : {true, false}) {
    CAPTURE(sampled);
    std::vector<double> seen(3);
    const int runs = 3000;
    for (int r = 0; r < runs; ++r) {
      const auto s = open({.partial = 0}, target, {.depth = 2, .width = 2, .sampled = sampled, .seed = static_cast<std::uint64_t>(r)},
                          {.greedy = false, .temperature = 1.3F, .seed = static_cast<std::uint64_t>(r)});
      s->start(prompt);
      seen[static_cast<std::size_t>(s->step().front())] += 1;
    }
    double chi = 0;
    for (std::size_t x = 0; x < 3; ++x) chi += (seen[x] - runs * p[x]) * (seen[x] - runs * p[x]) / (runs * p[x]);
    CHECK(chi < 13.816);  // 99.9%, two degrees of freedom
  }
}

TEST_CASE("the released block score is no upper bound, Quest's is", "[unit]") {
  const std::vector<float> q{1, -2}, high{1, 1}, low{0, 0};  // keys (1, 0) and (0, 1)
  CHECK(pv::block_score(pv::Score::code, q, high, low) == 0.0F);  // below q.(1, 0) = 1
  CHECK(pv::block_score(pv::Score::quest, q, high, low) == 1.0F);
}

TEST_CASE("scores decide which blocks are retrieved", "[unit]") {
  const TargetModel target = tiny_model(small_shape(), 37, 30);
  const auto prompt = random_prompt(70, 37, 31);
  std::set<std::uint64_t> seen;
  for (const int score : {0, 1}) {
    const auto s = open({.score = score}, target, {});
    emit(*s, prompt, 20);
    seen.insert(digest(s->cache().buffers()));
  }
  CHECK(seen.size() == 2);
}

TEST_CASE("bytes at the paper's setting, and the plan of a round", "[unit]") {
  const CacheShape shape = uniform_shape(32, 32, 8, 128, Dtype::bf16, {.rotary_dim = 128});
  const ParamRow defaults = defaults_of(method().params);
  const History h{.prompt = Tokens(60000)};
  const Ledger ledger = method().ledger_formula(defaults, shape, h, {});
  CHECK(ledger.of("partial", Side::key).value + ledger.of("partial", Side::value).value == 131072LL * (4256 + 20 + 60 + 1));
  CHECK(ledger.of("summaries", Side::key).value == 2LL * 32 * 8 * 128 * 2 * ((60000 - 32 - 128) / 16));
  CHECK(ledger.of("rows", Side::key).value == 65536LL * 60000);
  // 0.8 at 7 levels: 4.16 tokens a round, 4 partial rounds to a full one. Most reads are spared.
  CHECK(method().expected_emitted(defaults, 0.8) == Approx((1 - std::pow(0.8, 8)) / 0.2));
  ParamRow lossless = defaults;
  lossless.back() = 0;
  const double partial = method().decode_plan(defaults, shape, h, {}).read_bytes();
  const double full = method().decode_plan(lossless, shape, h, {}).read_bytes();
  CHECK(full > 131072.0 * 60000);
  CHECK(partial < 0.45 * full);
  CHECK(method().ledger_formula(lossless, shape, h, {}).total().value == 131072LL * 60000);
}

TEST_CASE("settings, models and calls that cannot be are refused in one sentence", "[unit]") {
  const CacheShape shape = small_shape();
  CHECK(refusal({}, shape) == "");
  CacheShape odd = shape;
  odd.classes[0].window = 64_tok;
  CHECK(refusal({}, odd) == "specpv: window is 64, must be 0: a sliding window cannot give drafted tokens' places back");
  CHECK(refusal({}, shape, {.greedy = false, .temperature = 0.0F}) == "temperature is 0, must be above 0 and at most 1e6 when sampling");
  CHECK(refusal({}, shape, {}, 0) == "vocabulary is 0, must be at least 1");
  const TargetModel target = tiny_model(shape, 5, 1);
  CHECK_THROWS_WITH(method().speculate(Setting{}.row(), target, {}, {}), "target.forward and draft.propose must both be given");
  const auto s = open({}, target, {});
  CHECK_THROWS_WITH(s->step(), "step() was called before start(), which brings the prompt");
  CHECK_THROWS_WITH(s->start({}), "prompt is empty, must hold at least one token");
  CHECK_THROWS_WITH(s->start(std::vector<TokenId>{1, 5}), "prompt[1] is 5, must be below the vocabulary (5)");
  s->start(std::vector<TokenId>{1});
  CHECK_THROWS_WITH(s->start(std::vector<TokenId>{1}), "start() was called before; a speculator serves one text");
  CHECK(s->step().size() >= 1);
  const auto deep = open({.depth = 2}, target, {.depth = 3, .one_in = 0});
  deep->start(std::vector<TokenId>{1, 2});
  CHECK_THROWS_WITH(deep->step(), "draft node 2 is on level 3, must be on at most depth (2)");
}
