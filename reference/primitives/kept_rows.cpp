#include "reference/primitives/kept_rows.hpp"

#include <algorithm>

#include "core/kernels/attention.hpp"
#include "core/kernels/store.hpp"
#include "reference/primitives/plans.hpp"

namespace kvatlas {

Ledger kept_ledger(const CacheShape& stored, const History& h, Tokens kept) {
  Ledger ledger;
  for (const LayerClass& c : stored.classes) {
    if (c.kind != RowKind::kv) {
      ledger.add(dense_ledger({.classes = {c}, .dtype = stored.dtype}, h));
      continue;
    }
    const std::int64_t rows = kept.value * c.count() * c.kv_heads * h.sequences * bytes_of(stored.dtype);
    ledger.add("rows", Side::key, Scope::token, Bytes(rows * c.k_dim));
    ledger.add("rows", Side::value, Scope::token, Bytes(rows * c.v_dim));
  }
  return ledger;
}

std::int64_t stored_heads(const CacheShape& stored, const History& h) {
  std::int64_t heads = 0;
  for (const LayerClass& c : stored.classes)
    if (c.kind == RowKind::kv) heads += std::int64_t{c.count()} * c.kv_heads * h.sequences;
  return heads;
}

void add_kept_step(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, const KeptAttention& how) {
  const CodeFormat plain = CodeFormat::plain(dtype);
  const double launches = (c.count() + static_cast<double>(c.readers.size())) * how.steps;
  plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = dtype,
                           .k_format = plain, .v_format = plain}
               .call(c.count() * how.steps));
  plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(),
                                    .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = dtype, .tokens = how.tokens,
                                    .k_format = plain, .v_format = plain, .rotate_keys = how.rotate_keys, .run = how.run,
                                    .emit_weights = how.emit_weights}
               .call(launches));
  plan.add(kernels::SpanMerge{.rows = std::int64_t{h.sequences} * c.q_heads, .v_dim = c.v_dim, .dtype = dtype, .tokens = how.tokens}
               .call(launches));
}

void add_compaction(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, std::int64_t rows, double launches) {
  const std::int64_t heads = std::int64_t{h.sequences} * c.kv_heads;
  for (const int dim : {c.k_dim, c.v_dim})
    plan.add(kernels::Gather{.heads = heads, .rows = rows, .row_bytes = std::int64_t{dim} * bytes_of(dtype)}.call(launches));
}

}  // namespace kvatlas
