// One side of a claim: a deployment made from the setup, and the quantity asked of it.
#include <string_view>

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "reference/components.hpp"
#include "simulator/claims/judge.hpp"
#include "simulator/step_model.hpp"

namespace kvatlas::sim {

namespace {

Deployment deployment_of(const ClaimSide& side) {
  Deployment d;
  d.model = &models::find_model(side.model);
  d.gpu = parse_gpu(side.gpu);
  d.recipe = Recipe::parse(side.recipe);
  d.weights = parse_weight_format(side.weights);
  d.tp = side.tp;
  if (!side.engine.empty()) d.engine = &find_engine(side.engine);
  d.gpu_memory_utilization = side.utilization;
  d.chunk = Tokens(side.chunk);
  d.released_plan = side.released;
  return d;
}

Ledger ledger_of(const ClaimSide& side) {
  return Recipe::parse(side.recipe)
      .bind(models::find_model(side.model).cache)
      .ledger({.prompt = Tokens(side.prompt), .generated = Tokens(side.output), .sequences = side.batch.value_or(1), .shared_prefix = Tokens(side.shared)});
}

double stored_bytes(const ClaimSide& side) {
  const Ledger ledger = ledger_of(side);
  double bytes = 0;
  for (const LedgerEntry& e : ledger.entries())
    if (side.component.empty() ? side.metadata || is_payload(kind_of_component(e.component)) : e.component == side.component) bytes += static_cast<double>(e.bytes.value);
  return bytes;
}

/// What the ledger alone can say.
double bytes_figure(const ClaimSide& side) {
  const CacheShape& shape = models::find_model(side.model).cache;
  const double sequences = side.batch.value_or(1), tokens = static_cast<double>(side.prompt + side.output);
  const double dense = static_cast<double>(dense_bytes(shape, Tokens(side.prompt + side.output)).value) * sequences;
  if (side.quantity == ClaimQuantity::bits_per_value) return stored_bytes(side) * 8 / (dense / bytes_of(shape.dtype));
  if (side.quantity == ClaimQuantity::cache_tokens) return static_cast<double>(ledger_of(side).high_water().value) / (dense / (tokens * sequences)) / sequences;
  if (side.quantity == ClaimQuantity::bits_per_token_head) {
    double heads = 0;
    for (const LayerClass& c : shape.classes) heads += static_cast<double>(c.layers.size()) * c.kv_heads;
    return stored_bytes(side) * 8 / (tokens * sequences * heads);
  }
  return stored_bytes(side);
}

std::int64_t longest_prompt(const StepModel& s, const ClaimSide& side) {
  std::int64_t fits = 0, too_long = std::int64_t{1} << 26;
  while (too_long - fits > 1) {
    const std::int64_t middle = fits + (too_long - fits) / 2;
    const Tokens prompt(middle);
    (s.memory(prompt, prompt + Tokens(side.output), side.batch.value_or(1)).total() <= s.available_bytes() ? fits : too_long) = middle;
  }
  return fits;
}

/// Attention in the wide sense: what is done to the cache but for writing to it.
double attention_s(const Part& p) {
  const bool attends = p.category == Category::attention || p.category == Category::method;
  return attends && std::string_view(p.name) != name_of(KernelId::append) ? p.seconds : 0.0;
}

}  // namespace

double evaluate(const ClaimSide& side) {
  if (side.quantity != ClaimQuantity::none && !needs_gpu(side.quantity)) return bytes_figure(side);
  const StepModel s(deployment_of(side));
  const Tokens prompt(side.prompt), end(side.prompt + side.output), middle(side.prompt + ceil_div(side.output, 2)), shared(side.shared);
  if (side.quantity == ClaimQuantity::max_context) return static_cast<double>(longest_prompt(s, side));
  const std::int64_t room = s.max_batch(prompt, end, shared);
  if (side.quantity == ClaimQuantity::max_batch) return static_cast<double>(room);
  if (!side.batch && room < 1) throw Unsupported(cat("not one sequence of ", end.value, " tokens fits on ", s.deployment().gpu.name));
  const int batch = side.batch ? *side.batch : static_cast<int>(std::min<std::int64_t>(room, 1 << 16));
  const auto step = [&](Tokens context) { return s.decode(prompt, context, batch, shared).seconds / s.emitted(); };
  const auto prompts = [&] {
    // What is shared is processed once, and the rest of each prompt on top of it.
    const double whole = s.prefill(prompt, 1).seconds;
    if (shared.value == 0) return whole * batch;
    const double once = s.prefill(shared, 1).seconds;
    return once + (whole - once) * batch;
  };
  switch (side.quantity) {
    case ClaimQuantity::step_s: return step(middle);
    case ClaimQuantity::layer_attention_s: {
      double seconds = 0;
      s.decode_parts(prompt, middle, batch, shared, [&](const Part& p) { seconds += attention_s(p); });
      return seconds / models::layers(*s.deployment().model);
    }
    case ClaimQuantity::prefill_s: return s.prefill(prompt, batch).seconds;
    case ClaimQuantity::prefill_attention_s: {
      double seconds = 0;
      s.prefill_parts(prompt, batch, [&](const Part& p) { seconds += attention_s(p); });
      return seconds;
    }
    case ClaimQuantity::ttft_s: return s.prefill(prompt, batch).seconds + step(prompt);
    case ClaimQuantity::tokens_per_s: return batch * static_cast<double>(side.output) / (prompts() + static_cast<double>(side.output) * step(middle));
    case ClaimQuantity::decode_tokens_per_s: return batch / step(middle);
    case ClaimQuantity::peak_bytes: return s.memory(prompt, end, batch, shared).total();
    case ClaimQuantity::step_read_bytes: return s.decode(prompt, middle, batch, shared).cache_read_bytes * s.gpus();
    case ClaimQuantity::none:
    case ClaimQuantity::max_batch:
    case ClaimQuantity::max_context:
    case ClaimQuantity::cache_bytes:
    case ClaimQuantity::bits_per_value:
    case ClaimQuantity::bits_per_token_head:
    case ClaimQuantity::cache_tokens: break;
  }
  throw InvalidArgument("quantity is none: there is nothing to compute");
}

double claimed_figure(const ClaimSetup& setup, double ours, double base, std::string_view unit) {
  switch (setup.compare) {
    case Compare::base_over_ours:
      if (unit == "x") return base / ours;
      break;
    case Compare::ours_over_base:
      if (unit == "x" || unit == "of dense") return ours / base;
      break;
    case Compare::saving:
      if (unit == "%") return 100 * (1 - ours / base);
      break;
    case Compare::value: {
      struct Unit {
        std::string_view name;
        double per_base_unit;
        std::string_view measures;
      };
      static constexpr Unit kUnits[] = {{"s", 1, "time"}, {"ms", 1e3, "time"}, {"us", 1e6, "time"}, {"byte", 1, "bytes"}, {"GB", 1e-9, "bytes"},
                                        {"GiB", 1.0 / (1 << 30), "bytes"}, {"token/s", 1, "rate"}, {"token", 1, "tokens"}, {"sequence", 1, "sequences"}, {"bit", 1, "bits"}};
      const std::string_view quantity = name_of(setup.ours.quantity);
      const std::string_view measures = quantity.ends_with("tokens_per_s") ? "rate" : quantity.ends_with("_s") ? "time" : quantity.ends_with("bytes") ? "bytes"
                                        : quantity == "max_context" || quantity == "cache_tokens" ? "tokens" : quantity == "max_batch" ? "sequences" : "bits";
      for (const Unit& u : kUnits)
        if (u.name == unit && u.measures == measures) return ours * u.per_base_unit;
      break;
    }
  }
  throw InvalidArgument(cat("compare=", name_of(setup.compare), " of ", name_of(setup.ours.quantity), " is no figure in \"", unit, "\""));
}

}  // namespace kvatlas::sim
