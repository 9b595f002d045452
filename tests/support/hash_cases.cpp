#include "tests/support/hash_cases.hpp"

#include "core/errors.hpp"
#include "tests/support/beside_cases.hpp"
#include "tests/support/scenario.hpp"

namespace kvatlas::test {

namespace {

HashRow run_cache(const Scenario& s, std::string name) {
  const auto cache = open_cache(s);
  auto bits = run_prompt(*cache, s);
  const auto more = run_decode(*cache, s, 0, s.decode);
  bits.insert(bits.end(), more.begin(), more.end());
  const auto buffers = cache->buffers();
  return {.method = s.method->slug, .name = std::move(name), .output = digest(bits), .buffers = digest(buffers),
          .bytes = count_ledger(buffers).total().value};
}

}  // namespace

std::vector<HashRow> all_hash_rows() {
  std::vector<HashRow> rows;
  for (const Method* m : cached_methods()) {
    Scenario s{.method = m, .shape = uniform_shape(4, 4, 2, 64, Dtype::bf16, {.base = 500000.0, .rotary_dim = 64}),
               .row = defaults_of(m->params), .prompt = 300, .chunk = 300, .decode = 4, .seed = 42};
    if (why_not(*m, s.row, s.shape)) s.shape = uniform_shape(4, 4, 2, 128, Dtype::bf16, {.base = 500000.0, .rotary_dim = 128});  // groups of 128
    rows.push_back(run_cache(s, "defaults"));
    for (std::uint64_t i = 0; i < 12; ++i) rows.push_back(run_cache(draw(*m, 900000 + i), cat("draw", i)));
  }
  for (HashRow& row : beside_hash_rows()) rows.push_back(std::move(row));
  return rows;
}

}  // namespace kvatlas::test
