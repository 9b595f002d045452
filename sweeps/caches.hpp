// What a recipe's cache consists of on a model: the byte ledger by component, stored beside a sweep's points.
#pragma once

#include <cstdint>
#include <vector>

#include "sweeps/database.hpp"
#include "sweeps/spec.hpp"

namespace kvatlas::sweep {

/// Contexts at which ledgers are stored: each context of the spec, and prompt + output of each workload, rounded down to
/// a power of two; ascending, each once.
std::vector<Tokens> ledger_contexts(const Spec& spec);

/// Writes rows of `caches` and `ledgers` for every model and recipe of the spec that are not there yet. One sequence,
/// the whole context a prompt, all layers together. Recipes that cannot serve a model have no row.
/// models, methods   ids in the store, by place in the spec
void store_caches(Database& db, const Spec& spec, const std::vector<std::int64_t>& models, const std::vector<std::int64_t>& methods);

}  // namespace kvatlas::sweep
