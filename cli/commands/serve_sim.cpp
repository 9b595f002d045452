// serve-sim: a serving engine simulated event by event: latencies, rates and goodput of a stream of requests.
#include <algorithm>
#include <fmt/core.h>
#include <ostream>
#include <span>

#include "answers/serving.hpp"
#include "cli/commands/command.hpp"
#include "cli/commands/support/deployment.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "cli/commands/support/warnings.hpp"
#include "core/io/file.hpp"
#include "models/registry.hpp"
#include "simulator/serving/serving.hpp"
#include "sweeps/spec.hpp"

namespace kvatlas::cli {

namespace {

const Usage& serve_sim_usage() {
  static const Usage u{
      .command = "serve-sim", .positional = "",
      .example = "kvatlas serve-sim --model llama-3.1-8b --gpu h100-sxm --prompt 2K --output 256 --rate 5 --slo ttft_ms=2000,tpot_ms=40",
      .options = join({model_and_gpu_options(),
                       {Option::text("method", "M", "method and parameters", "full"),
                        Option::text("trace", "FILE", "arrivals and lengths: Azure LLM trace (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) or Mooncake (JSON lines: timestamp, input_length, output_length, hash_ids)"),
                        Option::number("speed", 1e-6, 1e6, "trace: arrivals come this many times faster", "1"),
                        Option::integer("requests", 1, 50000000, "requests to simulate (default: 1000, or all of the trace)"),
                        Option::number("spread", 0, 1, "lengths are uniform within this share of --prompt and --output", "0"),
                        Option::integer("seed", 0, 4294967295.0, "of arrivals and lengths: equal seeds, equal runs", "1"),
                        Option::integer("max-num-seqs", 1, 65536, "requests that one replica runs at once", "256"),
                        Option::integer("prefill-replicas", 1, 1024, "disaggregated: replicas that process prompts", "1"),
                        Option::integer("decode-replicas", 1, 1024, "disaggregated: replicas that decode", "1"),
                        Option::text("timeline", "FILE", "write the run as Chrome/Perfetto JSON (the first 100,000 spans, 2,000 requests)")},
                       workload_options(), deployment_options()}),
      .note = "Either --trace FILE, or --prompt and --output with --rate R (Poisson arrivals) or --concurrency N\n"
              "(N users in a closed loop). --chunk is the tokens of one pass (decodes first, then prompts in\n"
              "chunks), --dp N runs N replicas. Percentiles are nearest-rank. Limits of --slo, under either\n"
              "spelling, hold for each request: goodput counts those that keep them."};
  return u;
}

sim::Stream read_stream(const Parsed& p) {
  if (p.has("trace")) {
    for (const char* name : {"prompt", "output", "rate", "concurrency", "prefix-hit", "turns", "spread", "seed", "cache-state"})
      if (p.given(name)) throw UsageError(cat("--", name, " contradicts --trace, which has its own arrivals and lengths"));
    return sim::read_trace(p.text("trace"), p.number("speed"), p.has("requests") ? p.integer("requests") : 0);
  }
  if (p.given("speed")) throw UsageError("--speed belongs to --trace FILE");
  for (const char* name : {"prompt", "output"})
    if (!p.has(name)) throw UsageError(cat("--", name, " N is required without --trace FILE"));
  if (p.has("rate") == p.has("concurrency")) throw UsageError(cat(p.has("rate") ? "give one of" : "needs", " --rate R (Poisson arrivals) or --concurrency N (closed loop)", p.has("rate") ? "" : ", or --trace FILE"));
  sim::StreamRecipe r{.requests = p.has("requests") ? p.integer("requests") : 1000, .prompt = p.tokens("prompt"), .output = p.tokens("output"),
                      .spread = p.number("spread"), .prefix_hit = p.number("prefix-hit"), .turns = static_cast<int>(p.integer("turns")),
                      .warm = p.text("cache-state") == "warm", .seed = static_cast<std::uint64_t>(p.integer("seed"))};
  if (p.has("rate")) r.rate = p.number("rate");
  if (p.has("concurrency")) r.users = static_cast<int>(p.integer("concurrency"));
  return sim::make_stream(r);
}

std::string spell_question(const Parsed& p, const sim::Stream& stream) {
  const std::string n = spell_count(static_cast<double>(stream.requests.size()));
  if (p.has("trace")) return cat(n, " requests of ", p.text("trace"), p.number("speed") != 1 ? cat(", ", spell_number(p.number("speed")), " times as fast") : std::string());
  return cat(n, " requests of ", spell_count(static_cast<double>(p.integer("prompt"))), " prompt and ", spell_count(static_cast<double>(p.integer("output"))), " output tokens, ",
             p.has("rate") ? cat("Poisson arrivals of ", spell_number(p.number("rate")), " a second") : cat(p.integer("concurrency"), " users in a closed loop"));
}

void print_text(std::ostream& out, const sim::ServingReport& r, const sim::ServingSetup& setup, const std::string& question, int gpus) {
  const sim::Deployment& d = setup.deployment;
  out << d.recipe.canonical() << " on " << d.model->name << ", " << gpus << " x " << d.gpu.name << ", weights " << sim::name_of(d.weights) << "\n" << question << "\n\n";
  Table table({{"ms"}, {"p50", Align::right}, {"p90", Align::right}, {"p99", Align::right}, {"mean", Align::right}, {"max", Align::right}});
  for (const auto& [name, p] : {std::pair{"TTFT", &r.ttft}, std::pair{"TPOT", &r.tpot}, std::pair{"end to end", &r.e2e}, std::pair{"in queue", &r.queue}}) {
    const auto cell = [p = p](double v) { return p->count > 0 ? spell_number(1e3 * v) : std::string("-"); };
    table.add({name, cell(p->p50), cell(p->p90), cell(p->p99), cell(p->mean), cell(p->most)});
  }
  table.print(out, 2);
  const auto line = [&](const char* label, const std::string& text) { out << fmt::format("  {:<18}{}\n", label, text); };
  out << "\n";
  line("completed", cat(spell_count(static_cast<double>(r.completed)), " of ", spell_count(static_cast<double>(r.requests)), " in ", spell_number(r.duration_s), " s",
                        r.refused > 0 ? cat("; ", r.refused, " refused: ", r.refused_why) : std::string()));
  if (r.completed == 0) {
    out << "\n  computed; no request completed\n";
    return;
  }
  line("throughput", cat(spell_number(r.requests_per_s), " requests/s, ", spell_number(r.tokens_per_s), " output tokens/s"));
  const bool limits = setup.slo.ttft_s || setup.slo.tpot_s;
  line("goodput", limits ? cat(spell_number(r.goodput_per_s), " requests/s within the SLO (", spell_number(100 * r.good_share), " % of those completed)") : std::string("no SLO given: every completed request counts"));
  line("preemptions", spell_count(static_cast<double>(r.preemptions)));
  line("prefix hits", cat(spell_number(100 * r.prefix_hit_rate), " % of prompt tokens"));
  line("cache", cat(spell_count(static_cast<double>(r.kv_tokens)), " tokens a replica, at most ", spell_number(100.0 * static_cast<double>(r.most_blocks_used) / static_cast<double>(std::max<std::int64_t>(1, r.pool_blocks))), " % in use"));
  line("GPU hours", cat(spell_number(r.gpu_hours), ", busy ", spell_number(100 * r.busy_share), " % of the time"));
  out << "\n  computed; step times are " << sim::name_of(r.evidence) << ", their intervals provisional\n";
}

}  // namespace

int run_serve_sim(const Arguments& args, const Streams& io) {
  const auto parsed = parse(serve_sim_usage(), args, io);
  if (!parsed) return kDone;
  const Parsed& p = *parsed;
  for (const char* name : {"prefill-replicas", "decode-replicas"})
    if (p.given(name) && !p.has("disaggregated")) throw UsageError(cat("--", name, " needs --disaggregated"));
  if (p.has("disaggregated") && p.integer("dp") > 1) throw UsageError("--dp contradicts --disaggregated, which takes --prefill-replicas and --decode-replicas");
  const models::Model model = models::load_model(p.text("model"));
  sim::ServingSetup setup;
  setup.deployment = read_deployment(p, model);
  setup.deployment.recipe = Recipe::parse(p.text("method"));
  setup.sequences = p.integer("max-num-seqs");
  setup.disaggregated = p.has("disaggregated");
  setup.prefill_replicas = static_cast<int>(p.integer("prefill-replicas"));
  setup.decode_replicas = static_cast<int>(p.integer("decode-replicas"));
  if (p.has("slo")) setup.slo = read_slo(p);
  setup.most_spans = p.has("timeline") ? 100000 : 0;
  const sim::Stream stream = read_stream(p);
  const sim::ServingReport report = sim::serve(setup, stream);
  const int gpus = answers::gpus_of(setup);

  Warnings warnings;
  warnings.add_model(model);
  std::int64_t longest = 0;
  for (const sim::Request& r : stream.requests) longest = std::max<std::int64_t>(longest, r.prompt + r.output);
  warnings.add_budgets(setup.deployment.recipe, Tokens(longest));
  if (report.refused > 0) warnings.add(cat(report.refused, " of ", report.requests, " requests were refused: ", report.refused_why));
  warnings.print(io, "serve-sim");
  if (p.has("timeline")) {
    const std::string text = sim::serving_timeline(report, stream);
    io::write_text(p.text("timeline"), text);
  }
  if (p.json()) {
    Json document{{"model", model.slug}, {"gpu", sim::canonical(setup.deployment.gpu)}, {"method", setup.deployment.recipe.canonical()},
                  {"weights", sim::name_of(setup.deployment.weights)}, {"disaggregated", setup.disaggregated}};
    document.update(answers::to_json(report, setup));
    document["warnings"] = warnings.json();
    print(io, document);
  } else {
    print_text(io.out, report, setup, spell_question(p, stream), gpus);
  }
  return kDone;
}

}  // namespace kvatlas::cli
