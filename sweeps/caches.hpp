// What a recipe's cache consists of on a model: the byte ledger by component, stored beside a sweep's points.
#pragma once

#include <cstdint>
#include <vector>

#include "sweeps/database.hpp"
#include "sweeps/spec.hpp"

namespace kvatlas::sweep {

/// A cache of fixed size forgets tokens: of the next seven times as many it stores not a sixty-fourth (a quarter of a bit a value).
/// Some fill and shrink by turns, so that twice the context alone would not tell. Recommendations and stores judge by this one bound.
bool forgets(const BoundRecipe& recipe, Tokens context);

/// Contexts at which ledgers are stored: each context of the spec rounded down to a power of two, and prompt + output of
/// each workload as it is; ascending, each once.
std::vector<Tokens> ledger_contexts(const Spec& spec);

/// Contexts at which the whole is stored: those of the ledgers and each context of the spec as it is, because whether a
/// cache forgets changes between two powers of two; ascending, each once.
std::vector<Tokens> cache_contexts(const Spec& spec);

/// Writes rows of `caches` and `ledgers` for every model and recipe of the spec that are not there yet. One sequence,
/// the whole context a prompt, all layers together. Recipes that cannot serve a model have no row.
/// models, methods   ids in the store, by place in the spec
void store_caches(Database& db, const Spec& spec, const std::vector<std::int64_t>& models, const std::vector<std::int64_t>& methods);

}  // namespace kvatlas::sweep
