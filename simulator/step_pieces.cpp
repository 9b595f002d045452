// The pieces of a pass, for a scheduler that mixes prompts and decodes in one pass.
#include "simulator/step_model.hpp"

namespace kvatlas::sim {

double StepModel::decode_kernels_s(Tokens prompt, Tokens context, int sequences, Tokens shared) const {
  double seconds = 0;
  const Plan plan = decode_plan(prompt, context, sequences, shared);
  for (const KernelCall& call : plan.calls()) seconds += kernel_part(call).seconds;
  return seconds;
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
