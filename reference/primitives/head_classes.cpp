#include "reference/primitives/head_classes.hpp"

#include <utility>

#include "core/kernels/attention.hpp"
#include "core/kernels/store.hpp"

namespace kvatlas {

void add_head_classes_step(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, std::int64_t full, std::int64_t all_rows, std::int64_t short_rows) {
  const double consumers = 1.0 + static_cast<double>(c.readers.size()) / c.count();
  const CodeFormat plain = CodeFormat::plain(dtype);
  plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = dtype, .k_format = plain, .v_format = plain}
               .call(c.count()));
  const auto attend = [&](std::int64_t heads, std::int64_t rows, std::int64_t layers) {
    if (heads <= 0 || layers <= 0) return;
    plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = static_cast<int>(heads), .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim, .v_dim = c.v_dim,
                                      .dtype = dtype, .tokens = Tokens(rows), .k_format = plain, .v_format = plain}
                 .call(static_cast<double>(layers) * consumers));
    plan.add(kernels::SpanMerge{.rows = h.sequences * heads * c.q_per_kv(), .v_dim = c.v_dim, .dtype = dtype, .tokens = Tokens(rows)}
                 .call(static_cast<double>(layers) * consumers));
  };
  const std::int64_t each = full / c.count(), more = full % c.count();
  for (const auto& [heads, layers] : {std::pair{each + 1, more}, {each, c.count() - more}}) {
    attend(heads, all_rows, layers);
    attend(c.kv_heads - heads, short_rows, layers);
  }
}

}  // namespace kvatlas
