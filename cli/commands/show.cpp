// show: one method (or recipe) on one model: record, byte ledger, bits per value, plan of a decode step and of the prompt.
#include <fmt/core.h>
#include <ostream>

#include "answers/storage.hpp"
#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "cli/commands/support/warnings.hpp"
#include "models/registry.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::cli {

namespace {

const Usage& show_usage() {
  static const Usage u{
      .command = "show", .positional = "METHOD", .least = 1, .most = 1,
      .example = "kvatlas show kivi:bits=2 --model llama-3.1-8b --context 32K",
      .options = {Option::text("model", "M", "model slug or path of a config.json", "llama-3.1-8b"),
                  Option::size("context", 1, 1 << 26, "prompt tokens in the cache", "32K"),
                  Option::size("generated", 0, 1 << 20, "tokens generated after the prompt", "0"),
                  Option::integer("batch", 1, 1 << 20, "equal sequences", "1"),
                  Option::size("shared-prefix", 0, 1 << 26, "leading prompt tokens that all sequences share", "0"),
                  Option::choice("plan", {"ideal", "released"}, "ideal: fused, well written; released: what the official code does", "ideal")}};
  return u;
}

void print_wrapped(std::ostream& out, const std::string& label, const std::string& text) {
  constexpr std::size_t kIndent = 13;
  bool first = true;
  for (const std::string& line : wrap(text, kLineWidth - kIndent)) {
    out << fmt::format("{:<{}}", first ? label : "", kIndent) << line << "\n";
    first = false;
  }
}

void print_record(std::ostream& out, const Method& m) {
  out << m.name << " (" << m.slug << "), " << name_of(m.family) << "\n";
  print_wrapped(out, "paper", cat(m.paper.title, ", ", m.paper.year, ", ", m.paper.url));
  std::string engines;
  for (const Deployable& d : m.deployable) engines += cat(engines.empty() ? "" : "; ", d.engine, " >= ", d.min_version, ": ", d.flag);
  print_wrapped(out, "runs in", engines.empty() ? "no engine: research only" : engines);
  if (!m.needs.empty()) {
    std::string needs;
    for (const Need n : m.needs) needs += cat(needs.empty() ? "" : ", ", name_of(n));
    print_wrapped(out, "needs", needs);
  }
  if (!m.events.empty()) {
    std::string events;
    for (const EventKind e : m.events) events += cat(events.empty() ? "" : ", ", name_of(e));
    print_wrapped(out, "events", events);
  }
  std::string limits;
  const std::pair<const char*, const Serving::Answer*> answers[] = {
      {"prefix cache", &m.serving.prefix_cache}, {"paged cache", &m.serving.paged_cache},
      {"chunked prefill", &m.serving.chunked_prefill}, {"CUDA graphs", &m.serving.cuda_graphs},
      {"tensor parallelism", &m.serving.tensor_parallelism}, {"speculation", &m.serving.speculation},
      {"multi-turn", &m.serving.multi_turn}};
  for (const auto& [name, answer] : answers)
    if (answer->works != Works::yes)
      limits += cat(limits.empty() ? "" : "; ", name, ": ", name_of(answer->works), answer->reason[0] != '\0' ? cat(" (", answer->reason, ")") : "");
  print_wrapped(out, "serving", limits.empty() ? "no limit" : limits);
  if (m.notes[0] != '\0') print_wrapped(out, "notes", m.notes);
  if (!m.params.empty()) {
    out << "\n";
    Table table({{"parameter"}, {"default", Align::right}, {"range"}, {"meaning"}});
    for (const ParamSpec& p : m.params) {
      std::string range = p.type == ParamType::flag ? "true, false" : "";
      if (p.type == ParamType::choice)
        for (const std::string_view c : p.choices) range += cat(range.empty() ? "" : ", ", c);
      if (range.empty()) range = cat(format_value(p, p.min), " to ", format_value(p, p.max), p.unit[0] != '\0' ? " " : "", p.unit);
      table.add({p.name, format_value(p, p.default_value), range, p.help});
    }
    table.print(out, 2);
  }
}

/// Bits of one original value: stored, and what memory must hold beside them.
void print_bits(std::ostream& out, const answers::Storage& a) {
  out << "\n";
  Table table({{"kind"}, {"bits a value", Align::right}, {"bytes", Align::right}, {""}});
  const auto row = [&](const char* name, double bytes, const std::string& what) { table.add({name, fmt::format("{:.4f}", a.bits.bits(bytes)), spell_bytes(bytes), what}); };
  double total = 0;
  for (int i = 0; i < kBitKindCount; ++i) {
    const double bytes = a.bits.bytes[static_cast<std::size_t>(i)];
    row(name_of(static_cast<BitKind>(i)), bytes, "");
    total += bytes;
  }
  row("stored", total, "the ledger");
  row("page padding", a.bits.page_padding_bytes, cat("whole pages of ", a.bits.page, " tokens"));
  row("temporaries", a.bits.temporary_bytes, "the most that one launch of a decode step writes beside the cache");
  row("prompt", a.bits.prompt_bytes, "held until the prompt is compressed");
  row("peak", total + a.bits.prompt_bytes, "end of the prompt, before compression, or steady state");
  table.print(out, 2);
  out << "\n";
  for (const std::string& formula : a.formulas)
    for (const std::string& line : wrap(formula, kLineWidth - 2)) out << "  " << line << "\n";
}

void print_plan(std::ostream& out, const Json& rows, const char* title) {
  out << "\n" << title << "\n";
  Table table({{"kernel"}, {"stage"}, {"reads", Align::right}, {"writes", Align::right}, {"operations", Align::right}, {"launches", Align::right}});
  for (const Json& r : rows)
    table.add({r["kernel"], r["stage"], spell_bytes(r["reads_bytes"]), spell_bytes(r["writes_bytes"]),
               spell_si(r["flops"].get<double>(), "flop"), spell_number(r["launches"].get<double>())});
  table.print(out, 2);
}

}  // namespace

int run_show(const Arguments& args, const Streams& io) {
  const auto parsed = parse(show_usage(), args, io);
  if (!parsed) return kDone;
  const Recipe recipe = Recipe::parse(parsed->positional()[0]);
  const models::Model model = models::load_model(parsed->text("model"));
  const History h{.prompt = parsed->tokens("context"), .generated = parsed->tokens("generated"),
                  .sequences = static_cast<int>(parsed->integer("batch")), .shared_prefix = parsed->tokens("shared-prefix")};
  if (h.shared_prefix > h.prompt)
    throw UsageError(cat("--shared-prefix is ", h.shared_prefix.value, ", must be at most --context (", h.prompt.value, ")"));
  const bool released = parsed->text("plan") == "released";
  const Method& m = recipe.main();
  const answers::Storage a = answers::storage(recipe, model.cache, h, released);
  Warnings warnings;
  warnings.add_model(model);
  warnings.add_budgets(recipe, h.tokens());
  warnings.print(io, "show");

  if (parsed->json()) {
    Json document = method_record(m);
    document["method"] = recipe.canonical();
    document["model"] = model.slug;
    document["context"] = h.prompt.value;
    document["generated"] = h.generated.value;
    document["batch"] = h.sequences;
    document["dtype"] = name_of(model.cache.dtype);
    document["plan_kind"] = released ? "released" : "ideal";
    document.update(a.json);
    document["why_not"] = a.refusal.empty() ? Json(nullptr) : Json(a.refusal);
    document["formulas"] = a.formulas;
    document["warnings"] = warnings.json();
    document["provenance"] = "computed";
    print(io, document);
    return kDone;
  }

  print_record(io.out, m);
  io.out << "\n" << recipe.canonical() << " on " << model.name << ", " << spell_count(static_cast<double>(h.tokens().value)) << " tokens, batch "
         << h.sequences << " (computed)\n";
  if (!a.refusal.empty()) {
    io.out << "  not possible: " << a.refusal << "\n";
    return kDone;
  }
  Table ledger({{"component"}, {"side"}, {"scope"}, {"bytes", Align::right}, {"", Align::right}, {"share", Align::right}, {"bits a value", Align::right}});
  const double total = a.json["total_bytes"].get<double>();
  for (const Json& r : a.json["ledger"]) {
    const double bytes = r["bytes"];
    ledger.add({r["component"], r["side"], r["scope"], spell_count(bytes), spell_bytes(bytes), fmt::format("{:.1f}%", total > 0 ? 100 * bytes / total : 0),
                fmt::format("{:.4f}", a.bits.bits(bytes))});
  }
  ledger.add({"total", "", "", spell_count(total), spell_bytes(total), "100.0%", fmt::format("{:.4f}", a.bits.bits(total))});
  ledger.print(io.out, 2);
  print_bits(io.out, a);
  print_plan(io.out, a.json["plan"], released ? "one decode step, released code (computed)" : "one decode step, ideal kernels (computed)");
  print_plan(io.out, a.json["prefill_plan"], "the prompt (computed)");
  return kDone;
}

}  // namespace kvatlas::cli
