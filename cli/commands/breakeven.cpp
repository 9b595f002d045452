// breakeven: the context, the batch and the memory bandwidth at which a method overtakes another, and why.
#include "simulator/breakeven.hpp"

#include <algorithm>
#include <cmath>
#include <fmt/core.h>
#include <ostream>

#include "answers/breakeven.hpp"
#include "cli/commands/command.hpp"
#include "cli/commands/support/deployment.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "cli/commands/support/warnings.hpp"
#include "models/registry.hpp"

namespace kvatlas::cli {

namespace {

const Usage& breakeven_usage() {
  static const Usage u{
      .command = "breakeven", .positional = "",
      .example = "kvatlas breakeven --method kivi:bits=2 --model llama-3.1-8b --gpu a100 --batch 8",
      .options = join({{Option::text("method", "M", "the method that is to pay").needed()}, model_and_gpu_options(),
                       {Option::text("against", "M", "what it has to overtake", "full"),
                        Option::size("context", 1, 1 << 26, "where batch and bandwidth are searched", "32K"),
                        Option::integer("batch", 1, 65536, "where context and bandwidth are searched (with --output: requests in flight)", "1"),
                        Option::size("output", 1, 1 << 24, "compare whole workloads by requests/s: prompts of --context, so many output tokens"),
                        Option::size("max-context", 16, 1 << 26, "longest context that is searched", "1M"),
                        Option::integer("max-batch", 1, 65536, "largest batch that is searched", "1024")},
                       deployment_options()}),
      .note = "Without --output one decode step is compared, prefill and memory limits left out. Ahead means faster by a\n"
              "thousandth; a context or batch is the first from which the method stays ahead, to the end of the search."};
  return u;
}

}  // namespace

int run_breakeven(const Arguments& args, const Streams& io) {
  const auto parsed = parse(breakeven_usage(), args, io);
  if (!parsed) return kDone;
  const Parsed& p = *parsed;
  if (!p.has("output"))
    for (const char* name : {"chunk", "gpu-memory-utilization", "dp"})
      if (p.given(name)) throw UsageError(cat("--", name, " changes no single decode step, needs --output N"));
  const models::Model model = models::load_model(p.text("model"));
  sim::BreakevenQuestion q;
  q.deployment = read_deployment(p, model);
  q.deployment.recipe = Recipe::parse(p.text("method"));
  q.against = Recipe::parse(p.text("against"));
  q.context = p.tokens("context");
  q.batch = static_cast<int>(p.integer("batch"));
  q.longest = p.given("max-context") ? p.tokens("max-context") : std::max(p.tokens("max-context"), q.context);
  q.largest = static_cast<int>(p.given("max-batch") ? p.integer("max-batch") : std::max<std::int64_t>(p.integer("max-batch"), q.batch));
  if (p.has("output")) q.output = p.tokens("output");
  const std::string own = q.deployment.recipe.canonical(), other = q.against.canonical();
  if (own == other) throw UsageError(cat("--method and --against are both \"", own, "\", must differ"));
  const sim::Breakeven b = sim::breakeven(q);

  Warnings warnings;
  warnings.add_model(model);
  warnings.add_budgets(q.deployment.recipe, q.context);
  warnings.print(io, "breakeven");
  if (p.json()) {
    Json document = answers::to_json(b, q);
    document["warnings"] = warnings.json();
    print(io, document);
    return kDone;
  }
  io.out << own << " against " << other << " on " << model.name << ", " << q.deployment.gpu.name << " (" << (q.output ? "requests/s of a workload" : "one decode step, prefill excluded") << ")\n\n";
  const auto line = [&](const char* label, const std::string& text) {
    const std::vector<std::string> lines = wrap(text, kLineWidth - 14);
    for (std::size_t i = 0; i < lines.size(); ++i) io.out << fmt::format("  {:<12}{}\n", i == 0 ? label : "", lines[i]);
  };
  line("context", cat(b.context_why, " (batch ", q.batch, ")"));
  line("batch", cat(b.batch_why, " (", q.context.value, " tokens)"));
  line("bandwidth", b.bandwidth_why);
  if (std::isfinite(b.gain)) line("gain", cat(spell_number(b.gain), "x where asked"));
  line("reason", b.reason);
  io.out << "\n  computed; " << sim::name_of(b.evidence) << ", provisional intervals do not enter\n";
  return kDone;
}

}  // namespace kvatlas::cli
