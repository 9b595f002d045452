// Saved caches that nobody saved: random bytes, wrong sizes, missing and doubled buffers, and random parameters. A loader
// refuses with a sentence or takes what has a meaning; a cache that took it goes on without a fault.
#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

void randomize(std::vector<std::byte>& bytes, Random& random) {
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.below(256));
}

/// One way to spoil saved buffers.
std::vector<NamedBuffer> spoiled(std::vector<NamedBuffer> saved, Random& random) {
  const auto one = [&]() -> NamedBuffer& { return saved[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(saved.size())))]; };
  switch (random.below(8)) {
    case 0:  // random bytes everywhere, sizes kept
      for (NamedBuffer& b : saved) randomize(b.bytes, random);
      break;
    case 1: randomize(one().bytes, random); break;
    case 2: {  // shorter
      NamedBuffer& b = one();
      b.bytes.resize(b.bytes.empty() ? 0 : static_cast<std::size_t>(random.below(static_cast<std::int64_t>(b.bytes.size()))));
      break;
    }
    case 3: {  // longer
      NamedBuffer& b = one();
      b.bytes.resize(b.bytes.size() + 1 + static_cast<std::size_t>(random.below(300)), static_cast<std::byte>(random.below(256)));
      break;
    }
    case 4: saved.erase(saved.begin() + random.below(static_cast<std::int64_t>(saved.size()))); break;
    case 5: {  // one buffer in place of another
      const NamedBuffer from = one();
      one().bytes = from.bytes;
      break;
    }
    case 6:  // all buffers of a kind at twice their rows
      for (NamedBuffer& b : saved) {
        const std::vector<std::byte> once = b.bytes;
        b.bytes.insert(b.bytes.end(), once.begin(), once.end());
      }
      break;
    default:  // nothing held
      for (NamedBuffer& b : saved) b.bytes.clear();
      break;
  }
  return saved;
}

}  // namespace

TEST_CASE("saved caches with spoiled bytes are refused with a sentence or run on", "[conformance][fuzz]") {
  for (const Method* m : cached_methods())
    for (int attempt = 0; attempt < std::max(2, draws() / 100); ++attempt) {
      Scenario s = draw(*m, static_cast<std::uint64_t>(attempt) + 700000);
      s.prompt = s.chunk = std::min<std::int64_t>(s.prompt + 20, 80);
      const auto cache = open_cache(s);
      run_prompt(*cache, s);
      run_decode(*cache, s, 0, 2);
      const auto saved = cache->buffers();
      Random random(s.seed);
      for (int way = 0; way < 16; ++way) {
        CAPTURE(s.describe(), way);
        const auto fresh = open_cache(s);
        const std::uint64_t before = digest(fresh->buffers());
        try {
          fresh->load(spoiled(saved, random));
        } catch (const Error& e) {
          REQUIRE(std::string(e.what()).size() > 10);
          REQUIRE(digest(fresh->buffers()) == before);
          continue;
        }
        REQUIRE(count_ledger(fresh->buffers()).total().value >= 0);
        try {
          run_decode(*fresh, s, 2, 2);
        } catch (const Error& e) {  // what was loaded may speak of other positions than the step
          REQUIRE(std::string(e.what()).size() > 10);
        }
      }
    }
}

TEST_CASE("random parameters in and out of their ranges are refused with a sentence or give a cache", "[conformance][fuzz]") {
  const CacheShape shape = uniform_shape(1, 2, 1, 32, Dtype::bf16, {.rotary_dim = 32});
  for (const Method* m : all_methods()) {
    Random random(static_cast<std::uint64_t>(m->params.size()) + 77);
    for (int attempt = 0; attempt < std::max(20, draws() / 5); ++attempt) {
      std::string text = m->slug;
      for (std::size_t i = 0; i < m->params.size(); ++i) {
        const ParamSpec& p = m->params[i];
        const double wide = 2.0 * (p.max - p.min) + 2.0, value = p.min - 1.0 + wide * static_cast<double>(random.below(1000)) / 1000.0;
        std::string spelled = p.type == ParamType::number ? cat(value) : cat(static_cast<std::int64_t>(value));
        if (p.type == ParamType::choice && random.below(4) != 0) spelled = std::string(p.choices[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(p.choices.size())))]);
        if (p.type == ParamType::flag && random.below(4) != 0) spelled = random.below(2) == 0 ? "true" : "false";
        if (random.below(3) == 0) spelled = format_value(p, p.default_value);
        text += cat(i == 0 ? ":" : ",", p.name, "=", spelled);
      }
      CAPTURE(text);
      try {
        const MethodChoice choice = parse_choice(text);
        if (why_not(*m, choice.row, shape) || m->open == nullptr) continue;
        if (formula_ledger(*m, choice.row, shape, {.prompt = Tokens(64)}).total().value > (1 << 22)) continue;  // legal, large
        const auto cache = m->open(choice.row, shape, {});
        REQUIRE(!cache->buffers().empty());
      } catch (const Error& e) {
        REQUIRE(std::string(e.what()).size() > 10);
      }
    }
  }
}
