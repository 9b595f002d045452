// methods: the registry as a table or as JSON records.
#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/registry.hpp"

namespace kvatlas::cli {

namespace {

const Usage& methods_usage() {
  static const Usage u{.command = "methods", .positional = "", .example = "kvatlas methods --family eviction",
                       .options = {Option::choice("family", [] {
                                     std::vector<std::string_view> names;
                                     for (int i = 0; i < kFamilyCount; ++i) names.emplace_back(name_of(static_cast<Family>(i)));
                                     return names;
                                   }(), "only methods of this family"),
                                   Option::flag("presets", "list presets (named after deployments) instead of methods")},
                       .note = "A method is written slug or slug:param=value,param=value. Keys and values apart: k=A;v=B. By layer:\n"
                               "layers=0-1,last2:full;*:kivi:bits=2 (first match wins). By kv head: heads=0-1:full;*:kivi. Both, and\n"
                               "sides within a rule: first2&heads=0:full;*:k=kivi&v=fp8_kv. Presets: vllm:fp8, alone or as a method."};
  return u;
}

std::string spell_params(const Method& m) {
  std::string text;
  for (const ParamSpec& p : m.params) text += cat(text.empty() ? "" : " ", p.name, "=", format_value(p, p.default_value));
  return text.empty() ? "-" : text;
}

}  // namespace

int run_methods(const Arguments& args, const Streams& io) {
  const auto parsed = parse(methods_usage(), args, io);
  if (!parsed) return kDone;
  if (parsed->has("presets")) {
    Json list = Json::array();
    Table table({{"preset"}, {"method"}, {"source"}});
    for (const Preset& p : presets()) {
      list.push_back({{"name", p.name}, {"method", p.recipe}, {"source", p.source}, {"provenance", "published"}});
      table.add({std::string(p.name), std::string(p.recipe), std::string(p.source)});
    }
    if (parsed->json()) print(io, list);
    else table.print(io.out);
    return kDone;
  }
  Json list = Json::array();
  Table table({{"method"}, {"family"}, {"year", Align::right}, {"runs in"}, {"parameters and defaults"}});
  int count = 0;
  for (const Method* m : all_methods()) {
    if (parsed->has("family") && parsed->text("family") != name_of(m->family)) continue;
    ++count;
    if (parsed->json()) {
      list.push_back(method_record(*m));
      continue;
    }
    std::string engines;
    for (const Deployable& d : m->deployable)
      if (engines.find(d.engine) == std::string::npos) engines += cat(engines.empty() ? "" : " ", d.engine);
    table.add({m->slug, name_of(m->family), cat(m->paper.year), engines.empty() ? "research only" : engines, spell_params(*m)});
  }
  if (parsed->json()) {
    print(io, list);
  } else {
    table.print(io.out);
    io.out << "\n" << count << " methods; kvatlas show METHOD opens one\n";
  }
  return kDone;
}

}  // namespace kvatlas::cli
