#include "simulator/evaluator.hpp"

#include "core/errors.hpp"
#include "simulator/step_model.hpp"

namespace kvatlas::sim {

const char* name_of(Bound bound) {
  static constexpr const char* kNames[] = {"memory", "unpack", "tensor", "vector", "latency", "link", "memory_capacity"};
  return kNames[static_cast<std::size_t>(bound)];
}

const char* name_of(Evidence evidence) {
  static constexpr const char* kNames[] = {"fitted", "extrapolated", "other_gpu", "uncalibrated_format"};
  return kNames[static_cast<std::size_t>(evidence)];
}

Evaluator::Evaluator(Deployment deployment) : model_(std::make_unique<const StepModel>(std::move(deployment))) {}
Evaluator::~Evaluator() = default;
Evaluator::Evaluator(Evaluator&&) noexcept = default;
Evaluator& Evaluator::operator=(Evaluator&&) noexcept = default;

const Deployment& Evaluator::deployment() const { return model().deployment(); }

namespace {

void check_prompt(Tokens prompt, Tokens context) {
  if (prompt.value < 1 || prompt > context)
    throw InvalidArgument(cat("prompt is ", prompt.value, ", must be from 1 to context (", context.value, ")"));
}

}  // namespace

StepFigures Evaluator::step(Tokens context, int batch, StepMemo* memo) const { return step(context, context, batch, memo); }

StepFigures Evaluator::step(Tokens prompt, Tokens context, int batch, StepMemo* memo) const {
  check_sizes(model(), context, batch);
  check_prompt(prompt, context);
  const StepModel& s = model();
  const Totals t = s.decode(prompt, context, batch, Tokens(0), memo);
  const MemoryTerms m = s.memory(prompt, context, batch, Tokens(0), memo);
  const Interval i = s.interval(context, t);
  const double rounds = 1.0 / s.emitted();  // a round of speculation emits several tokens; figures are for one
  StepFigures f;
  f.step_s = t.seconds * rounds;
  f.attention_s = t.by_category[static_cast<std::size_t>(Category::attention)] * rounds;
  f.matrix_s = t.by_category[static_cast<std::size_t>(Category::matrix)] * rounds;
  f.method_s = t.by_category[static_cast<std::size_t>(Category::method)] * rounds;
  f.other_s = t.by_category[static_cast<std::size_t>(Category::other)] * rounds;
  f.low_s = i.low * rounds;
  f.high_s = i.high * rounds;
  f.cache_bytes = m.cache * s.gpus();
  f.peak_bytes = m.total();
  f.cache_read_bytes = t.cache_read_bytes * deployment().tp * deployment().dp * deployment().pp * rounds;
  f.energy_j = s.energy_j(t) * rounds;
  f.fits = m.total() <= s.available_bytes();
  f.bound = f.fits ? t.bound() : Bound::memory_capacity;
  f.evidence = i.evidence;
  return f;
}

double Evaluator::prefill_s(Tokens prompt, int batch) const {
  check_sizes(model(), prompt, batch);
  return model().prefill(prompt, batch).seconds;
}

double Evaluator::size_factor(Tokens context) const { return size_factor(context, context); }

double Evaluator::size_factor(Tokens prompt, Tokens context) const {
  check_sizes(model(), context, 1);
  check_prompt(prompt, context);
  const double stored = static_cast<double>(model().recipe().ledger({.prompt = prompt, .generated = context - prompt}).total().value);
  return stored > 0 ? model().baseline_bytes(context) / stored : 1.0;
}

}  // namespace kvatlas::sim
