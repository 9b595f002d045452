#include "reference/primitives/plans.hpp"

#include <algorithm>

#include "core/kernels/attention.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/store.hpp"
#include "reference/primitives/sides.hpp"

namespace kvatlas {

Bytes dense_rows(const LayerClass& c, Dtype dtype, Tokens context, int sequences) {
  const std::int64_t rows = ceil_div(c.visible(context).value, c.pool);
  return Bytes(rows * c.values_per_token() * bytes_of(dtype) * c.count() * sequences);
}

Ledger dense_ledger(const CacheShape& shape, const History& h) {
  Ledger ledger;
  for (const LayerClass& c : shape.classes) {
    const std::int64_t rows = ceil_div(c.visible(h.tokens()).value, c.pool) * c.count() * h.sequences * bytes_of(shape.dtype);
    if (c.kind == RowKind::kv || c.kind == RowKind::pooled) {
      ledger.add("rows", Side::key, Scope::token, Bytes(rows * c.kv_heads * c.k_dim));
      ledger.add("rows", Side::value, Scope::token, Bytes(rows * c.kv_heads * c.v_dim));
    } else if (c.kind == RowKind::latent) {
      ledger.add("rows", Side::key, Scope::token, Bytes(rows * c.k_dim));
    } else if (c.kind == RowKind::state) {
      ledger.add("state", Side::both, Scope::sequence, c.state * c.count() * h.sequences);
    }
    if (c.index_bytes > 0)
      ledger.add("index", Side::both, Scope::token,
                 Bytes(static_cast<std::int64_t>(c.index_bytes * static_cast<double>(h.tokens().value)) * c.count() * h.sequences));
  }
  return ledger;
}

void add_decode_attention(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, Tokens tokens,
                          const SideLayout& key, const SideLayout& value) {
  const double launches = c.count() + static_cast<double>(c.readers.size());
  plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(),
                                    .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = dtype, .tokens = tokens,
                                    .k_plain = std::min(key.plain, tokens), .v_plain = std::min(value.plain, tokens),
                                    .k_format = key.format, .v_format = value.format,
                                    .latent = c.kind == RowKind::latent}
               .call(launches));
  plan.add(kernels::SpanMerge{.rows = std::int64_t{h.sequences} * c.q_heads, .v_dim = c.v_dim, .dtype = dtype, .tokens = tokens}
               .call(launches));
}

void add_decode_attention(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, Tokens tokens) {
  const SideLayout plain{.format = CodeFormat::plain(dtype)};
  add_decode_attention(plan, c, dtype, h, tokens, plain, plain);
}

void add_append(Plan& plan, const LayerClass& c, Dtype dtype, const History& h) {
  const CodeFormat plain = CodeFormat::plain(dtype);
  plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim,
                           .v_dim = c.kind == RowKind::latent ? 0 : c.v_dim, .dtype = dtype, .k_format = plain, .v_format = plain}
               .call(c.count()));
}

bool add_state_step(Plan& plan, const LayerClass& c, const History& h) {
  if (c.kind == RowKind::state)
    plan.add(kernels::StateUpdate{.sequences = h.sequences, .bytes = c.state.value}.call(c.count()));
  return c.kind == RowKind::state || c.kind == RowKind::none;
}

Tokens add_index_step(Plan& plan, const LayerClass& c, const History& h) {
  const Tokens tokens(ceil_div(c.visible(h.tokens()).value, c.pool));
  if (c.index_top_k <= 0 || tokens.value <= c.index_top_k) return tokens;
  const double launches = c.count() + static_cast<double>(c.readers.size());
  plan.add(kernels::LabelScore{.sequences = h.sequences, .heads = 1, .q_per_head = 1, .channels = c.index_dim,
                               .label_bits = static_cast<std::int64_t>(8 * c.index_bytes), .tokens = tokens}
               .call(launches));
  plan.add(kernels::TopK{.rows = h.sequences, .candidates = tokens.value, .k = c.index_top_k}.call(launches));
  return Tokens(c.index_top_k);
}

Plan dense_decode_plan(const CacheShape& shape, const History& h) {
  Plan plan;
  for (const LayerClass& c : shape.classes) {
    if (add_state_step(plan, c, h)) continue;
    add_append(plan, c, shape.dtype, h);
    add_decode_attention(plan, c, shape.dtype, h, add_index_step(plan, c, h));
  }
  return plan;
}

namespace {

/// The formats in which a class's prompt rows are appended: keys, then values.
using AppendFormats = std::function<std::pair<CodeFormat, CodeFormat>(const LayerClass& c)>;

Plan prompt_plan(const CacheShape& shape, const History& h, double density, const AppendFormats& formats) {
  Plan plan;
  const std::int64_t chunk = h.chunk.value > 0 ? std::min(h.chunk, h.prompt).value : h.prompt.value;
  if (chunk <= 0) return plan;
  const std::int64_t whole = h.prompt.value / chunk, rest = h.prompt.value % chunk;
  for (const LayerClass& c : shape.classes) {
    if (c.kind == RowKind::state) {
      plan.add(kernels::StateUpdate{.sequences = h.sequences, .bytes = c.state.value}.call(
          c.count() * static_cast<double>(ceil_div(h.prompt.value, 64))));  // chunked scan, 64 tokens a state pass
      continue;
    }
    if (c.kind == RowKind::none) continue;
    const double layers = c.count() + static_cast<double>(c.readers.size());
    kernels::PrefillAttention attention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(),
                                        .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = shape.dtype, .chunk = Tokens(chunk),
                                        .window = c.window, .density = density, .latent = c.kind == RowKind::latent};
    // Cost is linear in `past` for whole chunks, so the middle one stands for all of them.
    if (whole > 0) {
      attention.past = Tokens((whole - 1) * chunk / 2);
      plan.add(attention.call(layers * static_cast<double>(whole)));
    }
    if (rest > 0) {
      attention.past = Tokens(whole * chunk);
      attention.chunk = Tokens(rest);
      plan.add(attention.call(layers));
    }
    const auto [key, value] = formats(c);
    plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim,
                             .v_dim = c.kind == RowKind::latent ? 0 : c.v_dim, .dtype = shape.dtype,
                             .k_format = key, .v_format = value, .rows = chunk}
                 .call(c.count() * static_cast<double>(whole) + (rest > 0 ? c.count() * static_cast<double>(rest) / static_cast<double>(chunk) : 0.0)));
  }
  return plan;
}

/// Rows of one side that are in `format` when the sequence has `context` tokens.
std::int64_t coded_rows(const SideLayout& layout, Tokens rows) { return std::max<std::int64_t>(0, (rows - layout.plain).value); }

/// Rows that are coded as they come: no plain row of theirs ever lies in the cache.
bool coded_on_append(const SideLayout& layout) { return layout.flush.value == 0 && layout.plain.value == 0; }

}  // namespace

Plan dense_prefill_plan(const CacheShape& shape, const History& h, double density) {
  const CodeFormat plain = CodeFormat::plain(shape.dtype);
  return prompt_plan(shape, h, density, [plain](const LayerClass&) { return std::pair{plain, plain}; });
}

void add_side_decode(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, const SideLayoutOf& layout) {
  if (add_state_step(plan, c, h)) return;
  const Tokens rows = c.visible(h.tokens());
  const SideLayout key = layout(c, Side::key, rows), value = layout(c, Side::value, rows);
  const CodeFormat dense = CodeFormat::plain(dtype);
  plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim,
                           .v_dim = c.kind == RowKind::latent ? 0 : c.v_dim, .dtype = dtype,
                           .k_format = key.flush.value > 0 ? dense : key.format,
                           .v_format = value.flush.value > 0 ? dense : value.format}
               .call(c.count()));
  for (const auto& [side, l] : {std::pair{Side::key, &key}, std::pair{Side::value, &value}})
    if (l->flush.value > 0 && coded_rows(*l, rows) > 0)
      plan.add(kernels::QuantizePack{.heads = std::int64_t{h.sequences} * c.kv_heads, .rows = l->flush.value,
                                     .dim = dim_of(c, side), .dtype = dtype, .format = l->format}
                   .call(c.count() / static_cast<double>(l->flush.value)));
  // What a learned index leaves out is taken from the coded rows: the plain ones are the newest, which it mostly chooses.
  add_decode_attention(plan, c, dtype, h, std::min(rows, add_index_step(plan, c, h)), key, value);
}

Plan side_decode_plan(const CacheShape& shape, const History& h, const SideLayoutOf& layout) {
  Plan plan;
  for (const LayerClass& c : shape.classes) add_side_decode(plan, c, shape.dtype, h, layout);
  return plan;
}

Plan side_prefill_plan(const CacheShape& shape, const History& h, const SideLayoutOf& layout) {
  const auto appended = [&](const LayerClass& c) {
    const auto format_of = [&](Side side) {
      const SideLayout l = layout(c, side, c.visible(h.prompt));
      return coded_on_append(l) ? l.format : CodeFormat::plain(shape.dtype);
    };
    return std::pair{format_of(Side::key), format_of(Side::value)};
  };
  Plan plan = prompt_plan(shape, h, 1.0, appended);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    const Tokens rows = c.visible(h.prompt);
    for (const Side side : {Side::key, Side::value}) {
      if (side == Side::value && c.kind == RowKind::latent) continue;
      const SideLayout l = layout(c, side, rows);
      if (coded_on_append(l) || l.format == CodeFormat::plain(shape.dtype)) continue;
      plan.add(kernels::QuantizePack{.heads = std::int64_t{h.sequences} * c.kv_heads, .rows = coded_rows(l, rows),
                                     .dim = dim_of(c, side), .dtype = shape.dtype, .format = l.format}
                   .call(c.count()));
    }
  }
  return plan;
}

}  // namespace kvatlas
