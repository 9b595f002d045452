#include "reference/primitives/draft_model.hpp"

#include <algorithm>

#include "core/kernels/attention.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/store.hpp"
#include "core/kernels/transform.hpp"

namespace kvatlas {

DraftSizes sizes_of(Draft draft) {
  if (draft == Draft::llama_3_2_1b)  // config.json of meta-llama/Llama-3.2-1B
    return {.layers = 16, .hidden = 2048, .ffn = 8192, .q_heads = 32, .kv_heads = 8, .head_dim = 64, .vocabulary = 128256};
  if (draft == Draft::qwen2_5_0_5b)  // config.json of Qwen/Qwen2.5-0.5B
    return {.layers = 24, .hidden = 896, .ffn = 4864, .q_heads = 14, .kv_heads = 2, .head_dim = 64, .vocabulary = 151936};
  return {};
}

namespace {

/// `rows` hidden rows through a weight of inputs x outputs, and the result to memory.
void add_product(Plan& plan, Dtype dtype, std::int64_t rows, int inputs, std::int64_t outputs, double launches) {
  plan.add(kernels::LowRank{.sequences = 1, .rows = rows, .rank = inputs, .dim = outputs, .dtype = dtype, .keep = true}.call(launches));
}

/// The weight products of one forward of `rows` tokens; logits of `scored` of them.
void add_products(Plan& plan, const DraftSizes& d, Dtype dtype, std::int64_t rows, std::int64_t scored, double forwards) {
  const double layers = d.layers * forwards;
  add_product(plan, dtype, rows, d.hidden, std::int64_t{d.q_heads + 2 * d.kv_heads} * d.head_dim, layers);
  add_product(plan, dtype, rows, d.q_heads * d.head_dim, d.hidden, layers);
  add_product(plan, dtype, rows, d.hidden, std::int64_t{2} * d.ffn, layers);  // gate and up
  add_product(plan, dtype, rows, d.ffn, d.hidden, layers);
  add_product(plan, dtype, scored, d.hidden, d.vocabulary, forwards);
}

void add_rows(Plan& plan, const DraftSizes& d, Dtype dtype, const History& h, std::int64_t rows, double launches) {
  plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = d.kv_heads, .k_dim = d.head_dim, .v_dim = d.head_dim, .dtype = dtype,
                           .k_format = CodeFormat::plain(dtype), .v_format = CodeFormat::plain(dtype), .rows = rows}
               .call(launches));
}

}  // namespace

void add_draft(Plan& plan, Draft draft, Dtype dtype, const History& h, Tokens prompt, Tokens steps) {
  const DraftSizes d = sizes_of(draft);
  if (d.layers == 0 || prompt.value <= 0) return;
  const std::int64_t sequences = h.sequences;
  add_products(plan, d, dtype, sequences * prompt.value, sequences, 1.0);
  add_rows(plan, d, dtype, h, prompt.value, d.layers);
  plan.add(kernels::PrefillAttention{.sequences = sequences, .kv_heads = d.kv_heads, .q_per_kv = d.q_heads / d.kv_heads, .k_dim = d.head_dim,
                                     .v_dim = d.head_dim, .dtype = dtype, .chunk = prompt}
               .call(d.layers));
  if (steps.value <= 0) return;
  const double launches = static_cast<double>(d.layers) * static_cast<double>(steps.value);
  const Tokens seen = prompt + Tokens(steps.value / 2);  // on average
  const CodeFormat plain = CodeFormat::plain(dtype);
  add_products(plan, d, dtype, sequences, sequences, static_cast<double>(steps.value));
  add_rows(plan, d, dtype, h, 1, launches);
  plan.add(kernels::DecodeAttention{.sequences = sequences, .kv_heads = d.kv_heads, .q_per_kv = d.q_heads / d.kv_heads, .k_dim = d.head_dim,
                                    .v_dim = d.head_dim, .dtype = dtype, .tokens = seen, .k_format = plain, .v_format = plain}
               .call(launches));
  plan.add(kernels::SpanMerge{.rows = sequences * d.q_heads, .v_dim = d.head_dim, .dtype = dtype, .tokens = seen}.call(launches));
}

void add_draft_scores(Plan& plan, Draft draft, Dtype dtype, const History& h, Tokens prompt, Tokens queries, int first_layer) {
  const DraftSizes d = sizes_of(draft);
  if (d.layers <= first_layer || prompt.value <= 0) return;
  plan.add(kernels::WindowScore{.sequences = h.sequences, .kv_heads = d.kv_heads, .q_per_kv = d.q_heads / d.kv_heads, .k_dim = d.head_dim,
                                .dtype = dtype, .context = prompt, .observation_window = std::min(queries, prompt)}
               .call(d.layers - first_layer));
}

}  // namespace kvatlas
