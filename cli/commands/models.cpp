// models: the zoo, or one model, with parameters and cache bytes.
#include "models/registry.hpp"

#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"

namespace kvatlas::cli {

namespace {

const Usage& models_usage() {
  static const Usage u{.command = "models", .positional = "[MODEL...]", .least = 0, .most = 64,
                       .example = "kvatlas models path/to/config.json --json", .options = {},
                       .note = "MODEL is a slug or the path of a Hugging Face config.json; without one, every shipped model."};
  return u;
}

}  // namespace

int run_models(const Arguments& args, const Streams& io) {
  const auto parsed = parse(models_usage(), args, io);
  if (!parsed) return kDone;
  std::vector<models::Model> list;
  if (parsed->positional().empty()) {
    const auto all = models::all_models();
    list.assign(all.begin(), all.end());
  } else {
    for (const std::string& name : parsed->positional()) list.push_back(models::load_model(name));
  }
  for (const models::Model& m : list)
    for (const std::string& warning : m.warnings) io.err << "kvatlas models: " << m.slug << ": " << warning << "\n";
  if (parsed->json()) {
    Json records = Json::array();
    for (const models::Model& m : list) records.push_back(Json(models::to_json(m)));
    print(io, records);
    return kDone;
  }
  Table table({{"model"}, {"parameters", Align::right}, {"active", Align::right}, {"layers", Align::right}, {"KV per token", Align::right},
               {"fixed", Align::right}, {"32K tokens", Align::right}, {"trained context", Align::right}});
  for (const models::Model& m : list)
    table.add({m.slug, spell_si(static_cast<double>(models::parameters(m)), ""), spell_si(static_cast<double>(models::active_parameters(m)), ""),
               cat(models::layers(m)), spell_bytes(static_cast<double>(models::kv_bytes_per_token(m).value)),
               spell_bytes(static_cast<double>(models::fixed_cache_bytes(m).value)),
               spell_bytes(static_cast<double>(dense_bytes(m.cache, Tokens(32768)).value)),
               m.trained_context ? spell_count(static_cast<double>(m.trained_context->value)) : "-"});
  table.print(io.out);
  io.out << "\nKV per token: bytes of one more token once every window is full; fixed: full windows and recurrent states\n"
            "sources of all figures: kvatlas models --json\n";
  return kDone;
}

}  // namespace kvatlas::cli
