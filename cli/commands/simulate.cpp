// simulate: one deployment. A workload (requests/s, TTFT, TPOT), or with --context the microscope: one decode step.
#include <fmt/core.h>
#include <fstream>
#include <ostream>

#include "answers/simulate.hpp"
#include "cli/commands/command.hpp"
#include "cli/commands/support/deployment.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "cli/commands/support/warnings.hpp"
#include "core/io/file.hpp"
#include "models/registry.hpp"
#include "simulator/evaluator.hpp"
#include "simulator/step_timeline.hpp"

namespace kvatlas::cli {

namespace {

const Usage& simulate_usage() {
  static const Usage u{
      .command = "simulate", .positional = "",
      .example = "kvatlas simulate --model llama-3.1-8b --gpu h100-sxm --method kivi:bits=2 --prompt 32K --output 512",
      .options = join({model_and_gpu_options(),
                       {Option::text("method", "M", "method and parameters", "full"),
                        Option::size("context", 1, 1 << 26, "microscope: cached tokens of one decode step, prefill excluded"),
                        Option::integer("batch", 1, 1 << 20, "microscope: sequences of the step", "1"),
                        Option::flag("explain", "open the figures into formulas with their numbers"),
                        Option::text("trace", "FILE", "write the decode step as Chrome/Perfetto JSON: every kernel of every layer")},
                       workload_options(), deployment_options()}),
      .note = "Either a workload (--prompt, --output, ...) or the microscope (--context, --batch)."};
  return u;
}

void print_text(std::ostream& out, const answers::Simulation& a, const sim::Deployment& d, const std::string& question, bool explain) {
  out << d.recipe.canonical() << " on " << d.model->name << ", " << d.gpu.name << ", weights " << sim::name_of(d.weights) << "\n" << question << "\n\n";
  const auto line = [&](const char* label, const Json& value, const char* unit, const char* note = "") {
    out << fmt::format("  {:<26}{:>10}{}{}{}\n", label, value.is_number() ? spell_number(value.get<double>()) : "-", unit[0] != '\0' ? " " : "", unit, note);
  };
  const Json& j = a.json;
  for (const std::string& text : wrap(a.why_not.empty() ? "" : cat("NOT POSSIBLE: ", a.why_not), kLineWidth - 2))
    if (!text.empty()) out << "  " << text << "\n";
  if (j["mode"] == "workload") {
    line("requests/s", j["requests_per_s"], "", j["interval_requests_per_s"].is_null() ? "" : fmt::format("   80% interval {} to {}", spell_number(j["interval_requests_per_s"]["low"].get<double>()), spell_number(j["interval_requests_per_s"]["high"].get<double>())).c_str());
    line("concurrency", j["concurrency"], "");
    line("TTFT", j["ttft_ms"], "ms");
    line("TPOT", j["tpot_ms"], "ms");
    line("speed-up, workload", j["speedup"], "x", "   over the uncompressed cache, prefill included");
  }
  line("tokens/s", j["tokens_per_s"], "");
  line("decode step", j["step_ms"], "ms", fmt::format("   80% interval {} to {} ({}, provisional)", spell_number(1e3 * a.step.figures.low_s), spell_number(1e3 * a.step.figures.high_s), sim::name_of(a.step.figures.evidence)).c_str());
  line("speed-up, decode only", j["speedup_decode_only"], "x");
  line("size factor", j["size_factor"], "x");
  out << fmt::format("  {:<26}{} of {} ({} weights, {} cache); at most {} sequences\n", "memory, peak", spell_bytes(a.memory.peak_bytes), spell_bytes(a.memory.available_bytes),
                     spell_bytes(a.memory.weights_bytes), spell_bytes(a.memory.cache_bytes), a.memory.max_batch);
  if (!j["energy_j_per_token"].is_null()) line("energy", j["energy_j_per_token"], "J/token", "   assumed");
  if (!j["usd_per_mtok"].is_null()) line("price", j["usd_per_mtok"], "USD per million tokens", "   assumed");
  out << "  bound by                  " << j["bound_by"].get<std::string>() << "\n\none decode step (computed)\n";
  Table table({{"part"}, {"ms", Align::right}, {"bytes", Align::right}, {"operations", Align::right}, {"launches", Align::right}, {"bound by"}});
  for (const sim::StepPart& p : a.step.parts)
    table.add({p.part, spell_number(1e3 * p.seconds), spell_bytes(p.bytes), spell_si(p.flops, "flop"), spell_number(p.launches), sim::name_of(p.bound)});
  table.print(out, 2);
  if (explain) {
    out << "\n";
    for (const std::string& f : a.step.formulas) {
      const std::vector<std::string> lines = wrap(f, kLineWidth - 6);
      for (std::size_t i = 0; i < lines.size(); ++i) out << (i == 0 ? "  " : "      ") << lines[i] << "\n";
    }
  }
}

}  // namespace

int run_simulate(const Arguments& args, const Streams& io) {
  const auto parsed = parse(simulate_usage(), args, io);
  if (!parsed) return kDone;
  const Parsed& p = *parsed;
  const bool microscopic = p.has("context");
  if (microscopic && (p.has("prompt") || p.has("output")))
    throw UsageError("give --context (one decode step) or --prompt and --output (a workload), not both");
  if (!microscopic && !p.has("prompt") && !p.has("output"))
    throw UsageError("needs a workload (--prompt N --output N) or the microscope (--context N --batch N)");
  if (microscopic) {
    for (const Option& o : workload_options())
      if (p.given(o.name)) throw UsageError(cat("--", o.name, " is part of a workload (--prompt, --output), not of one decode step (--context)"));
  } else if (p.given("batch")) {
    throw UsageError("--batch is part of one decode step (--context), not of a workload (--prompt, --output), which has --concurrency");
  }
  const models::Model model = models::load_model(p.text("model"));
  sim::Deployment d = read_deployment(p, model);
  d.recipe = Recipe::parse(p.text("method"));

  Warnings warnings;
  warnings.add_model(model);
  std::string question;
  answers::Simulation a;
  std::vector<sim::TimelineEvent> timeline;
  if (microscopic) {
    const sim::Evaluator e(d);
    const int batch = static_cast<int>(p.integer("batch"));
    a = answers::microscope(e, p.tokens("context"), batch);
    if (p.has("trace")) timeline = sim::step_timeline(e, p.tokens("context"), p.tokens("context"), batch);
    warnings.add_budgets(d.recipe, p.tokens("context"));
    question = cat("one decode step, prefill excluded: ", spell_count(static_cast<double>(p.integer("context"))), " cached tokens, batch ", batch);
  } else {
    const sim::Workload w = read_workload(p);
    const sim::Evaluator e(d);
    a = answers::workload(e, w);
    if (p.has("trace")) timeline = sim::step_timeline(e, w.prompt, w.prompt + Tokens(w.output.value / 2), a.batch);
    warnings.add_budgets(d.recipe, Tokens((w.prompt + w.output).value * w.turns));
    warnings.add_slo(p);
    question = spell(w);
  }
  warnings.print(io, "simulate");
  if (p.has("trace")) {
    const std::string text = sim::timeline_json(timeline, cat("decode step of ", d.recipe.canonical(), " on ", d.gpu.name));
    io::write_text(p.text("trace"), text);
  }
  if (p.json()) {
    Json document = answers::document(a, d);
    document["formulas"] = p.has("explain") ? Json(a.step.formulas) : Json(nullptr);
    document["warnings"] = warnings.json();
    document["provenance"] = "computed";
    print(io, document);
  } else {
    print_text(io.out, a, d, question, p.has("explain"));
  }
  return kDone;  // a deployment that cannot be is an answer, not a failure
}

}  // namespace kvatlas::cli
