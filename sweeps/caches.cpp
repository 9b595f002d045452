#include "sweeps/caches.hpp"

#include <bit>
#include <set>

namespace kvatlas::sweep {

namespace {

std::set<std::int64_t> contexts_of_ledgers(const Spec& spec) {
  std::set<std::int64_t> out;
  for (const Tokens context : spec.contexts)
    if (context.value > 0) out.insert(static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(context.value))));
  for (const sim::Workload& w : spec.workloads)
    if ((w.prompt + w.output).value > 0) out.insert((w.prompt + w.output).value);
  return out;
}

std::vector<Tokens> as_tokens(const std::set<std::int64_t>& contexts) {
  std::vector<Tokens> out;
  for (const std::int64_t n : contexts) out.emplace_back(n);
  return out;
}

}  // namespace

bool forgets(const BoundRecipe& recipe, Tokens context) {
  const Tokens later = 8 * context;
  const Bytes plain = dense_bytes(recipe.shape(), later) - dense_bytes(recipe.shape(), context);
  const Bytes stored = recipe.ledger({.prompt = later}).total() - recipe.ledger({.prompt = context}).total();
  return plain.value > 0 && 64 * stored.value < plain.value;
}

std::vector<Tokens> ledger_contexts(const Spec& spec) { return as_tokens(contexts_of_ledgers(spec)); }

std::vector<Tokens> cache_contexts(const Spec& spec) {
  std::set<std::int64_t> out = contexts_of_ledgers(spec);
  for (const Tokens context : spec.contexts)
    if (context.value > 0) out.insert(context.value);
  return as_tokens(out);
}

void store_caches(Database& db, const Spec& spec, const std::vector<std::int64_t>& models, const std::vector<std::int64_t>& methods) {
  Statement find_whole(db, "SELECT 1 FROM caches WHERE model = ? AND method = ? AND context = ?");
  Statement find_ledger(db, "SELECT 1 FROM ledgers WHERE model = ? AND method = ? AND context = ?");
  Statement cache(db, "INSERT OR IGNORE INTO caches VALUES(?, ?, ?, ?, ?, ?, ?)");
  Statement entry(db, "INSERT OR IGNORE INTO ledgers VALUES(?, ?, ?, ?, ?, ?, ?, ?)");
  const std::vector<Tokens> contexts = cache_contexts(spec);
  const std::set<std::int64_t> itemized = contexts_of_ledgers(spec);
  for (std::size_t m = 0; m < spec.models.size(); ++m) {
    const CacheShape& shape = spec.models[m].cache;
    for (std::size_t r = 0; r < spec.recipes.size(); ++r) {
      if (spec.recipes[r].why_not(shape)) continue;
      const BoundRecipe bound = spec.recipes[r].bind(shape);
      for (const Tokens context : contexts) {
        const bool with_ledger = itemized.contains(context.value);
        const auto known = [&](Statement& find) {
          find.bind(1, models[m]).bind(2, methods[r]).bind(3, context.value);
          const bool found = find.step();
          find.reset();
          return found;
        };
        const bool has_whole = known(find_whole);
        if (has_whole && (!with_ledger || known(find_ledger))) continue;
        const Ledger ledger = bound.ledger({.prompt = context});
        const Bytes stored = ledger.total(), dense = dense_bytes(shape, context);
        const double values = static_cast<double>(dense.value) / bytes_of(shape.dtype);
        if (!(values > 0)) continue;  // a model without keys and values
        const auto bits = [&](Bytes b) { return 8 * static_cast<double>(b.value) / values; };
        cache.bind(1, models[m]).bind(2, methods[r]).bind(3, context.value).bind(4, stored.value).bind(5, dense.value);
        cache.bind(6, bits(stored)).bind(7, forgets(bound, context) ? 1 : 0).run();
        if (!with_ledger) continue;
        for (const LedgerEntry& e : ledger.entries()) {
          entry.bind(1, models[m]).bind(2, methods[r]).bind(3, context.value).bind(4, e.component).bind(5, name_of(e.side));
          entry.bind(6, name_of(e.scope)).bind(7, e.bytes.value).bind(8, bits(e.bytes)).run();
        }
      }
    }
  }
}

}  // namespace kvatlas::sweep
