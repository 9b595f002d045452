#include "sweeps/chunk.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/errors.hpp"
#include "simulator/step_memo.hpp"

namespace kvatlas::sweep {

namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

/// Batches of one context: the list of the spec, or the series up to what fits.
std::vector<int> batches_at(const Batches& batches, std::int64_t max_batch) {
  return batches.to_memory_limit ? batch_series(batches.per_doubling, max_batch) : batches.list;
}

Key workload_key(const Spec& spec, std::size_t i) { return murmur3(to_json(spec.workloads[i]).dump()); }

/// Decoded tokens/s of the running requests alone.
double decode_rate(const sim::WorkloadFigures& f) { return f.step_s > 0 ? static_cast<double>(f.concurrency) / f.step_s : 0; }

}  // namespace

void Baseline::prepare() {
  if (sim::why_not(group_->baseline)) return;
  evaluator_.emplace(group_->baseline);
  sim::StepMemo memo;
  contexts_.resize(spec_->contexts.size());
  for (std::size_t i = 0; i < contexts_.size(); ++i) {
    const Tokens context = spec_->contexts[i];
    const std::int64_t max_batch = evaluator_->memory(context, context, 1).max_batch;
    AtContext& at = contexts_[i];
    for (const int b : batches_at(spec_->batches, max_batch)) {
      if (b > max_batch) break;
      at.batches.push_back(b);
      at.step_s.push_back(evaluator_->step(context, b, &memo).step_s);
    }
    if (max_batch > 0) {
      const int largest = static_cast<int>(std::min<std::int64_t>(max_batch, std::numeric_limits<int>::max()));
      at.tokens_per_s = evaluator_->step(context, largest).tokens_per_s(largest);
    }
  }
  for (const sim::Workload& w : spec_->workloads) workloads_.push_back(evaluator_->workload(w));
}

const Baseline::AtContext* Baseline::at(std::size_t context) {
  std::call_once(once_, [this] { prepare(); });
  return evaluator_ ? &contexts_[context] : nullptr;
}

const sim::WorkloadFigures* Baseline::workload(std::size_t workload) {
  std::call_once(once_, [this] { prepare(); });
  return evaluator_ ? &workloads_[workload] : nullptr;
}

double Baseline::step_s(std::size_t context, int batch) {
  const AtContext* known = at(context);
  if (known == nullptr) return kUnknown;
  const auto found = std::lower_bound(known->batches.begin(), known->batches.end(), batch);
  if (found != known->batches.end() && *found == batch) return known->step_s[static_cast<std::size_t>(found - known->batches.begin())];
  if (known->batches.empty() || batch > known->batches.back()) return kUnknown;
  return evaluator_->step(spec_->contexts[context], batch).step_s;  // the memory limit of another recipe, between two of ours
}

void evaluate_chunk(const ChunkInput& in, const std::function<bool(Block&&)>& emit) {
  const Spec& spec = *in.spec;
  Block block{.configuration = in.place};
  std::int64_t total = 0, infeasible = 0;
  const auto add_infeasible = [&](Tokens context, std::string sentence) {
    block.infeasible.push_back({context, std::move(sentence)});
    ++infeasible;
  };
  const auto close = [&] {
    block.last = true;
    block.total_points = total;
    block.total_infeasible = infeasible;
    emit(std::move(block));
  };
  const sim::Deployment deployed = deployment(spec, *in.configuration);
  if (auto reason = sim::why_not(deployed)) {
    add_infeasible(0_tok, std::move(*reason));
    return close();
  }
  const sim::Evaluator evaluator(deployed);
  if (in.sample != nullptr) {
    const sim::StepFigures again = evaluator.step(in.sample->context, in.sample->batch);
    if (again.step_s != in.sample->step_s || again.cache_bytes != in.sample->cache_bytes)
      throw IoError(cat("the store holds other figures for ", in.configuration->text, " at context ", in.sample->context.value, ", batch ",
                        in.sample->batch, ": it was written by other code, sweep into a new file and compare the two with diff"));
  }
  sim::StepMemo memo;
  const PointHasher key_of(in.configuration->key);
  for (std::size_t i = 0; i < spec.contexts.size(); ++i) {
    const Tokens context = spec.contexts[i];
    std::int64_t max_batch = 0;
    if (spec.batches.to_memory_limit) {
      const sim::Memory memory = evaluator.memory(context, context, 1);
      max_batch = memory.max_batch;
      if (max_batch < 1) {
        add_infeasible(context, memory.binding);
        continue;
      }
    }
    const double size_factor = evaluator.size_factor(context);
    const Baseline::AtContext* plain = in.baseline->at(i);
    for (const int b : batches_at(spec.batches, max_batch)) {
      ++total;
      Point p{.key = key_of(static_cast<std::uint64_t>(context.value), static_cast<std::uint64_t>(b)), .context = context, .batch = b};
      if (in.present != nullptr && in.present->contains(p.key)) {
        ++block.skipped;
        continue;
      }
      p.figures = evaluator.step(context, b, &memo);
      p.size_factor = size_factor;
      p.speedup = in.baseline->step_s(i, b) / p.figures.step_s;
      p.throughput_gain = plain != nullptr && plain->tokens_per_s > 0 ? p.figures.tokens_per_s(b) / plain->tokens_per_s : kUnknown;
      block.points.push_back(p);
    }
    if (block.points.size() >= kBlockPoints) {
      if (!emit(std::move(block))) return;
      block = Block{.configuration = in.place};
    }
  }
  for (std::size_t i = 0; i < spec.workloads.size(); ++i) {
    ++total;
    const Key half = workload_key(spec, i);
    WorkloadPoint w{.workload = i, .key = key_of(half.h1, half.h2), .speedup = kUnknown, .speedup_decode_only = kUnknown};
    if (in.present != nullptr && in.present->contains(w.key)) {
      ++block.skipped;
      continue;
    }
    w.figures = evaluator.workload(spec.workloads[i]);
    const sim::WorkloadFigures* plain = in.baseline->workload(i);
    if (plain != nullptr && plain->feasible && w.figures.feasible && plain->requests_per_s > 0 && decode_rate(*plain) > 0) {
      w.speedup = w.figures.requests_per_s / plain->requests_per_s;
      w.speedup_decode_only = decode_rate(w.figures) / decode_rate(*plain);
    }
    block.workloads.push_back(std::move(w));
  }
  close();
}

}  // namespace kvatlas::sweep
