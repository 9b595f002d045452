// The pieces of a pass, for a scheduler that mixes prompts and decodes in one pass, and what unequal lengths of caches cost.
#include <algorithm>
#include <cmath>

#include "simulator/constants.hpp"
#include "simulator/step_model.hpp"

namespace kvatlas::sim {

double StepModel::decode_kernels_s(Tokens prompt, Tokens context, int sequences, Tokens shared) const {
  double seconds = 0;
  const Plan plan = decode_plan(prompt, context, sequences, shared);
  for (const KernelCall& call : plan.calls()) seconds += kernel_part(call).seconds;
  return seconds;
}

StepModel::AttentionFigures StepModel::decode_attention(Tokens context, int sequences) const {
  AttentionFigures out;
  double most = 0;
  const Plan plan = decode_plan(context, context, sequences, Tokens(0));
  for (const KernelCall& call : plan.calls()) {
    if (call.kernel != KernelId::decode_attention) continue;
    const double seconds = kernel_part(call).seconds;
    out.seconds += seconds;
    if (seconds > most) most = seconds, out.entries = static_cast<double>(call.length), out.caches = static_cast<double>(call.heads);
  }
  return out;
}

void StepModel::find_ragged_attention() {
  const Plan plan = decode_plan(Tokens(4096), Tokens(4096), 16, Tokens(0));
  double most = 0;
  for (const KernelCall& call : plan.calls()) {
    const double seconds = kernel_part(call).seconds;
    if (call.kernel != KernelId::decode_attention || seconds <= most) continue;
    most = seconds;
    const DecodeWork w = sim::decode_work(call);
    const double entries = w.heads * w.length;
    RaggedAttention& r = ragged_attention_;
    r.cache.group = w.group, r.cache.row_values = w.row_values, r.cache.entry_bytes = w.bytes / entries, r.cache.entry_values = w.values / entries;
    r.profile = kernels_.decode_profile(call);
    r.rate = kernels_.value_rate_of(call);
  }
  const Ledger ledger = recipe_.ledger({.prompt = Tokens(4096), .sequences = 1});
  head_ragged_ = std::any_of(ledger.entries().begin(), ledger.entries().end(), [](const LedgerEntry& e) { return e.component == "lengths"; });
}

double StepModel::ragged_penalty(double caches, double entries, double variation) const {
  constexpr double kLeastVariation = 0.02, kMostCaches = 4096;  // more of them even out as these do
  if (ragged_attention_.rate == 0 || caches < 2 || variation < kLeastVariation) return 1;
  RaggedWork work = ragged_attention_.cache;
  work.lengths = spread_lengths(static_cast<std::size_t>(std::min(caches, kMostCaches)), std::max(1.0, entries), variation);
  return std::max(1.0, ragged_decode(kernels_.machine(), kernels_.constants(), ragged_attention_.profile, work, ragged_attention_.rate).penalty);
}

double StepModel::head_penalty(const KernelCall& call) const {
  const auto octave = [](double x, std::size_t most) { return std::min<std::size_t>(static_cast<std::size_t>(std::max(0, std::ilogb(std::max(1.0, x)))), most - 1); };
  const std::size_t heads = octave(static_cast<double>(call.heads), kHeadCells), length = octave(static_cast<double>(call.length), kLengthCells);
  std::atomic<float>& cell = head_penalties_[heads * kLengthCells + length];
  float penalty = cell.load(std::memory_order_relaxed);
  if (penalty == 0) {
    // The same from every thread that comes first.
    penalty = static_cast<float>(ragged_penalty(std::ldexp(1.0, static_cast<int>(heads)), std::ldexp(1.0, static_cast<int>(length)), constant(C::head_variation)));
    cell.store(penalty, std::memory_order_relaxed);
  }
  return static_cast<double>(penalty);
}

double StepModel::prompt_kernels_s(Tokens prompt) const {
  double seconds = 0;
  const Plan plan = recipe_.prefill_plan(history(prompt, Tokens(0), 1));
  for (const KernelCall& call : plan.calls()) seconds += kernel_part(call).seconds;
  return seconds;
}

std::vector<KernelTerms> StepModel::decode_terms(Tokens prompt, Tokens context, int batch) const {
  std::vector<KernelTerms> terms;
  const Plan plan = decode_plan(prompt, context, static_cast<int>(ceil_div(replica_batch(batch), d_.pp)), Tokens(0));
  for (const KernelCall& call : plan.calls()) terms.push_back(kernels_.terms(call));
  return terms;
}

double StepModel::pass_s(double tokens, double heads, double sequences) const {
  Totals totals;
  pass_parts(tokens, heads, sequences, 1, [&totals](const Part& p) { totals.add(p); });
  return totals.seconds;
}

double StepModel::rows_per_sequence() const {
  if (!speculates_) return 1.0;
  double rows = 0, attentions = 0;
  const Plan plan = decode_plan(Tokens(1024), Tokens(1024), 1, Tokens(0));
  for (const KernelCall& call : plan.calls())
    if (call.kernel == KernelId::decode_attention) rows += call.launches * call.queries, attentions += call.launches;
  return attentions > 0 ? rows / attentions : 1.0;
}

double StepModel::draft_s(int sequences) const { return speculates_ ? constant(C::draft_work) * matrices_.seconds(sequences, sequences) : 0.0; }

}  // namespace kvatlas::sim
