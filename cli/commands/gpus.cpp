// gpus: every GPU description, or some of them with what-if changes, each figure with its source.
#include "simulator/gpu.hpp"

#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "simulator/gpu_json.hpp"

namespace kvatlas::cli {

namespace {

const Usage& gpus_usage() {
  static const Usage u{.command = "gpus", .positional = "[GPU...]", .least = 0, .most = 64,
                       .example = "kvatlas gpus h100-sxm:hbm_bandwidth=6.7TB/s --json", .options = {},
                       .note = "GPU is a slug or alias, also with changes on any figure; without one, every GPU."};
  return u;
}

std::string spell_figure(const sim::Figure& f, const char* unit) { return f.known() ? spell_si(*f.value, unit) : "-"; }

}  // namespace

int run_gpus(const Arguments& args, const Streams& io) {
  const auto parsed = parse(gpus_usage(), args, io);
  if (!parsed) return kDone;
  std::vector<sim::Gpu> list;
  if (parsed->positional().empty()) {
    const auto all = sim::all_gpus();
    list.assign(all.begin(), all.end());
  } else {
    for (const std::string& text : parsed->positional()) list.push_back(sim::parse_gpu(text));
  }
  if (parsed->json()) {
    Json records = Json::array();
    for (const sim::Gpu& g : list) records.push_back(Json(sim::to_json(g)));
    print(io, records);
    return kDone;
  }
  Table table({{"gpu"}, {"architecture"}, {"memory", Align::right}, {"bandwidth", Align::right}, {"L2", Align::right},
               {"bf16", Align::right}, {"fp8", Align::right}, {"also called"}});
  for (const sim::Gpu& g : list) {
    std::string aliases;
    for (const std::string& a : g.aliases) aliases += cat(aliases.empty() ? "" : ", ", a);
    table.add({g.slug, g.architecture, g.memory_bytes.known() ? spell_bytes(*g.memory_bytes.value) : "-",
               spell_figure(g.hbm_bandwidth, "B/s"), g.l2_bytes.known() ? spell_bytes(*g.l2_bytes.value) : "-",
               spell_figure(g.bf16_flops, "flop/s"), spell_figure(g.fp8_flops, "flop/s"), aliases});
  }
  table.print(io.out);
  io.out << "\nA dash is a figure that is not known; sources of all figures: kvatlas gpus --json\n";
  return kDone;
}

}  // namespace kvatlas::cli
