// What the cache of partial verification promises about its bytes: counted = formula, saved = restored, no shadow copy,
// threads do not matter.
#include "core/errors.hpp"
#include "core/parallel.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/tiny_model.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

struct Run {
  CacheShape shape;
  ParamRow row;
  std::int64_t prompt = 0;
  int rounds = 0;
  std::uint64_t seed = 0;
  SpeculationOptions options;
};

Run draw_run(std::uint64_t attempt) {
  Random random(0x5bec + attempt * 977);
  Run r;
  const int head_dim = random.pick(std::vector<int>{8, 16, 24}), kv_heads = 1 + static_cast<int>(random.below(2));
  r.shape = uniform_shape(1 + static_cast<int>(random.below(2)), kv_heads * (1 + static_cast<int>(random.below(2))), kv_heads, head_dim,
                          random.pick(std::vector<Dtype>{Dtype::bf16, Dtype::f16, Dtype::f32}), {.rotary_dim = random.below(4) == 0 ? 0 : head_dim});
  const auto one_to = [&](std::int64_t n) { return static_cast<double>(1 + random.below(n)); };
  r.row = {one_to(5), static_cast<double>(random.below(3)), one_to(3), one_to(3), static_cast<double>(random.below(12)), one_to(8), 4.0,
           static_cast<double>(random.below(2)), random.below(6) == 0 ? 0.0 : 1.0};
  r.prompt = 1 + random.below(40);
  r.rounds = static_cast<int>(random.below(9));
  r.seed = random.next() >> 16;
  r.options = {.greedy = random.below(2) == 0, .temperature = 0.9F, .seed = r.seed};
  return r;
}

std::unique_ptr<Speculator> start(const Run& r, LogitLog* log) {
  const TargetModel target = tiny_model(r.shape, 19, r.seed, 6.0F, log);
  TinyDraft how{.width = 1 + static_cast<int>(r.seed % 2), .sampled = r.seed % 3 == 0, .seed = r.seed};
  auto s = find_method("specpv").speculate(r.row, target, tiny_draft(tiny_model(r.shape, 19, r.seed), how), r.options);
  s->start(random_prompt(r.prompt, 19, r.seed));
  return s;
}

/// Tokens and logits of the next rounds.
std::vector<std::uint32_t> go_on(Speculator& s, LogitLog& log, int rounds) {
  log.clear();
  std::vector<std::uint32_t> bits;
  for (int i = 0; i < rounds; ++i)
    for (const TokenId t : s.step()) bits.push_back(static_cast<std::uint32_t>(t));
  bits.insert(bits.end(), log.begin(), log.end());
  return bits;
}

}  // namespace

#ifndef KVATLAS_POISON_FORMULAS
TEST_CASE("the ledger formula of partial verification equals the sum of live buffers after every round", "[conformance]") {
  const Method& m = find_method("specpv");
  std::int64_t partial = 0;
  for (int attempt = 0; attempt < draws(); ++attempt) {
    const Run r = draw_run(static_cast<std::uint64_t>(attempt));
    CAPTURE(attempt);
    const auto s = start(r, nullptr);
    for (int round = 0; round <= r.rounds; ++round) {
      if (round > 0) s->step();
      // The last emitted token has no rows yet.
      const History h{.prompt = Tokens(r.prompt - 1), .generated = Tokens(s->stats().emitted)};
      const Ledger formula = formula_ledger(m, r.row, r.shape, h, s->cache().content_counts()), counted = count_ledger(s->cache().buffers());
      for (const Ledger* from : {&counted, &formula})
        for (const LedgerEntry& e : from->entries()) REQUIRE(counted.of(e.component, e.side).value == formula.of(e.component, e.side).value);
      REQUIRE(counted.total().value == formula.total().value);
    }
    partial += s->stats().partial_steps;
  }
  CHECK(partial > draws());
}
#endif

TEST_CASE("a partial verification loaded from saved buffers goes on with the same bits", "[conformance]") {
  for (int attempt = 0; attempt < std::max(1, draws() / 20); ++attempt) {
    const Run r = draw_run(static_cast<std::uint64_t>(attempt) + 100000);
    CAPTURE(attempt);
    LogitLog log, other_log;
    const auto s = start(r, &log), other = start(r, &other_log);
    for (int i = 0; i < r.rounds; ++i) other->step();
    for (int i = 0; i < r.rounds; ++i) s->step();
    const auto saved = s->cache().buffers();
    const auto expected = go_on(*s, log, 8);
    // The other one has the text; its cache gets lost and comes back.
    other->cache().crop(other->cache().kept(0, 0));
    other->cache().load(saved);
    REQUIRE(go_on(*other, other_log, 8) == expected);
    REQUIRE(digest(other->cache().buffers()) == digest(s->cache().buffers()));
  }
}

TEST_CASE("flipping bits of any buffer of partial verification changes a logit or is refused", "[conformance]") {
  for (int attempt = 0; attempt < std::max(1, draws() / 200); ++attempt) {
    Run r = draw_run(static_cast<std::uint64_t>(attempt) + 200000);
    r.row = {4, 1, 5, 2, 5, 8, 4, static_cast<double>(attempt % 2), 1};  // many refreshes, half of the blocks chosen
    r.prompt = 60;
    CAPTURE(attempt);
    LogitLog log;
    const auto s = start(r, &log);
    // Right after a refresh: a partial cache whose buffer is full is made anew before anybody reads it.
    for (r.rounds = 0; r.rounds < 3 || s->cache().content_counts().get("missing", 1) > 0; ++r.rounds) s->step();
    const auto saved = s->cache().buffers();
    const auto expected = go_on(*s, log, 16);
    for (std::size_t b = 0; b < saved.size(); ++b) {
      CAPTURE(saved[b].name);
      Random random(r.seed + b);
      bool noticed = false;
      for (int tries = 0; tries < 64 && !noticed; ++tries) {
        auto flipped = saved;
        flipped[b].bytes[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(flipped[b].bytes.size())))] ^= static_cast<std::byte>(1U << random.below(8));
        LogitLog other_log;
        const auto other = start(r, &other_log);
        for (int i = 0; i < r.rounds; ++i) other->step();
        try {
          other->cache().load(flipped);
          noticed = go_on(*other, other_log, 16) != expected;
        } catch (const Error&) {
          noticed = true;
        }
      }
      CHECK(noticed);
    }
    CHECK_THROWS_AS(s->cache().load({}), InvalidArgument);
  }
}

TEST_CASE("one and two threads give the same bits in partial verification", "[conformance]") {
  for (int attempt = 0; attempt < std::max(1, draws() / 50); ++attempt) {
    const Run r = draw_run(static_cast<std::uint64_t>(attempt) + 300000);
    CAPTURE(attempt);
    std::vector<std::vector<std::uint32_t>> seen;
    for (const int n : {1, 2}) {
      set_threads(n);
      LogitLog log;
      const auto s = start(r, &log);
      seen.push_back(go_on(*s, log, 8));
      seen.back().push_back(static_cast<std::uint32_t>(digest(s->cache().buffers())));
    }
    set_threads(2);
    REQUIRE(seen[0] == seen[1]);
  }
}
