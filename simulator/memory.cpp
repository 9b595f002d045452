// Peak memory of one GPU: weights, workspace, cache in whole pages, and what a prompt holds before it is compressed.
#include <algorithm>
#include <cmath>
#include <fmt/core.h>

#include "core/errors.hpp"
#include "simulator/step_memo.hpp"

namespace kvatlas::sim {

double StepModel::available_bytes() const { return *d_.gpu.memory_bytes.value * d_.gpu_memory_utilization; }

double StepModel::prompt_extra_bytes(Tokens prompt) const {
  // Prompts are processed one after the other, so one sequence at a time holds its uncompressed rows.
  const Ledger one = recipe_.running_ledger(history(prompt, Tokens(0), 1));
  return static_cast<double>((one.peak() - one.total()).value) * stage_share_;
}

MemoryTerms StepModel::memory(Tokens prompt, Tokens context, int batch, Tokens shared, StepMemo* memo) const {
  const int sequences = replica_batch(batch);
  // A sequence owns whole pages: the ledger of the rounded length is what the allocator hands out.
  const Tokens allocated(round_up(context.value, engine_->page.value));
  // Before the first step the rest of the last page is room for the prompt's own form.
  const Tokens asked = prompt == context ? allocated : prompt;
  // Where the stored bytes go up and down, the allocator keeps room for the most that a sequence ever holds.
  MemoryTerms m;
  m.weights = matrices_.weight_bytes() * stage_share_;
  m.cache = static_cast<double>(recipe_.running_ledger(history(asked, allocated - asked, sequences, shared)).high_water().value) * stage_share_;
  if (memo == nullptr) {
    m.prefill_extra = prompt_extra_bytes(prompt);
  } else {
    if (memo->prompt != prompt) memo->prompt_extra = prompt_extra_bytes(prompt), memo->prompt = prompt;
    m.prefill_extra = memo->prompt_extra;
  }
  const double chunk = static_cast<double>(whole_prompt_ ? prompt.value : std::min(prompt.value, d_.chunk.value));
  m.workspace = static_cast<double>(engine_->workspace.value) + chunk * (4.0 * hidden_ + matrices_.widest()) * 2.0 +
                static_cast<double>(sequences) * matrices_.vocabulary_of_rank() * 4.0;
  return m;
}

std::int64_t StepModel::max_batch(Tokens prompt, Tokens context, Tokens shared) const {
  const double room = available_bytes();
  const MemoryTerms one = memory(prompt, context, d_.dp, shared), two = memory(prompt, context, 2 * d_.dp, shared);
  if (!(one.total() <= room)) return 0;
  const double each = two.total() - one.total();
  constexpr std::int64_t kMost = 1 << 20;
  const double more = each > 0 ? (room - one.total()) / each : static_cast<double>(kMost);
  auto fit = static_cast<std::int64_t>(std::min(1.0 + std::floor(more), static_cast<double>(kMost / d_.dp)));
  // Ledgers round to bytes, groups and pages, so the last step is exact.
  const auto total = [&](std::int64_t n) { return memory(prompt, context, static_cast<int>(n * d_.dp), shared).total(); };
  while (fit > 1 && !(total(fit) <= room)) --fit;
  return fit * d_.dp;
}

Memory Evaluator::memory(Tokens prompt, Tokens context, int batch) const {
  check_sizes(model(), context, batch);
  if (prompt.value < 1 || prompt > context)
    throw InvalidArgument(cat("prompt is ", prompt.value, ", must be from 1 to context (", context.value, ")"));
  const StepModel& s = model();
  const MemoryTerms m = s.memory(prompt, context, batch);
  Memory out;
  out.weights_bytes = m.weights;
  out.cache_bytes = m.cache;
  out.workspace_bytes = m.workspace;
  out.peak_bytes = m.total();
  out.total_bytes = *deployment().gpu.memory_bytes.value;
  out.available_bytes = s.available_bytes();
  out.fits = m.total() <= out.available_bytes;
  out.max_batch = s.max_batch(prompt, context);
  const MemoryTerms one = s.memory(prompt, context, 1);
  const double room = out.available_bytes - one.weights - one.workspace - one.prefill_extra;
  if (room > 0 && one.cache > 0)
    out.kv_tokens = static_cast<std::int64_t>(std::floor(room / one.cache * static_cast<double>(context.value))) * deployment().dp;
  const auto gib = [](double bytes) { return fmt::format("{:.2f} GiB", bytes / 0x1p30); };
  const std::string limit = cat(gib(out.available_bytes), " (", deployment().gpu_memory_utilization, " of ", gib(out.total_bytes), " on ",
                                deployment().gpu.name, ")");
  if (m.weights + m.workspace > out.available_bytes) {
    out.binding = cat("weights take ", gib(m.weights), " and workspace ", gib(m.workspace), " of ", limit, ": no cache fits");
  } else if (!out.fits && m.prefill_extra > m.cache) {
    out.binding = cat("a prompt of ", prompt.value, " tokens holds ", gib(m.prefill_extra), " more before it is compressed; ", limit,
                      " leave ", gib(out.available_bytes - m.weights - m.workspace), " for the cache");
  } else if (!out.fits) {
    out.binding = cat("the cache of ", batch, batch == 1 ? " sequence" : " sequences", " of ", context.value, " tokens takes ", gib(m.cache + m.prefill_extra),
                      "; ", limit, " leave ", gib(out.available_bytes - m.weights - m.workspace), ", enough for ", out.max_batch);
  } else {
    out.binding = cat("cache memory binds at ", out.max_batch, out.max_batch == 1 ? " sequence" : " sequences", " of ", context.value, " tokens; ", limit);
  }
  return out;
}

}  // namespace kvatlas::sim
