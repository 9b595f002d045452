#include "sweeps/caches.hpp"

#include <bit>
#include <set>

namespace kvatlas::sweep {

namespace {

/// Twice the context in nearly the same bytes: the cache forgets tokens. The same bound as recommend's.
bool is_forgetful(const BoundRecipe& recipe, Tokens context, Bytes stored) {
  const Bytes twice = recipe.ledger({.prompt = Tokens(2 * context.value)}).total();
  return static_cast<double>(twice.value) * 1.8 < 2 * static_cast<double>(stored.value);
}

}  // namespace

std::vector<Tokens> ledger_contexts(const Spec& spec) {
  std::set<std::uint64_t> floors;
  const auto add = [&](Tokens t) {
    if (t.value > 0) floors.insert(std::bit_floor(static_cast<std::uint64_t>(t.value)));
  };
  for (const Tokens context : spec.contexts) add(context);
  for (const sim::Workload& w : spec.workloads) add(w.prompt + w.output);
  std::vector<Tokens> out;
  for (const std::uint64_t n : floors) out.emplace_back(static_cast<std::int64_t>(n));
  return out;
}

void store_caches(Database& db, const Spec& spec, const std::vector<std::int64_t>& models, const std::vector<std::int64_t>& methods) {
  Statement find(db, "SELECT 1 FROM caches WHERE model = ? AND method = ? AND context = ?");
  Statement cache(db, "INSERT INTO caches VALUES(?, ?, ?, ?, ?, ?, ?)");
  Statement entry(db, "INSERT OR IGNORE INTO ledgers VALUES(?, ?, ?, ?, ?, ?, ?, ?)");
  const std::vector<Tokens> contexts = ledger_contexts(spec);
  for (std::size_t m = 0; m < spec.models.size(); ++m) {
    const CacheShape& shape = spec.models[m].cache;
    for (std::size_t r = 0; r < spec.recipes.size(); ++r) {
      if (spec.recipes[r].why_not(shape)) continue;
      const BoundRecipe bound = spec.recipes[r].bind(shape);
      for (const Tokens context : contexts) {
        find.bind(1, models[m]).bind(2, methods[r]).bind(3, context.value);
        const bool known = find.step();
        find.reset();
        if (known) continue;
        const Ledger ledger = bound.ledger({.prompt = context});
        const Bytes stored = ledger.total(), dense = dense_bytes(shape, context);
        const double values = static_cast<double>(dense.value) / bytes_of(shape.dtype);
        if (!(values > 0)) continue;  // a model without keys and values
        const auto bits = [&](Bytes b) { return 8 * static_cast<double>(b.value) / values; };
        cache.bind(1, models[m]).bind(2, methods[r]).bind(3, context.value).bind(4, stored.value).bind(5, dense.value);
        cache.bind(6, bits(stored)).bind(7, is_forgetful(bound, context, stored) ? 1 : 0).run();
        for (const LedgerEntry& e : ledger.entries()) {
          entry.bind(1, models[m]).bind(2, methods[r]).bind(3, context.value).bind(4, e.component).bind(5, name_of(e.side));
          entry.bind(6, name_of(e.scope)).bind(7, e.bytes.value).bind(8, bits(e.bytes)).run();
        }
      }
    }
  }
}

}  // namespace kvatlas::sweep
