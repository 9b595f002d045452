#include "simulator/gpu_json.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "simulator/units_text.hpp"

namespace kvatlas::sim {

using nlohmann::json;

namespace {

const char* provenance_of(const Figure& f) {
  if (f.source.starts_with("what-if") || f.source.starts_with("assumed")) return "assumed";
  return f.source.starts_with("measured") ? "measured" : "published";
}

}  // namespace

json to_json(const Gpu& gpu) {
  json figures = json::object();
  for (const FigureField& f : figure_fields()) {
    const Figure& figure = gpu.*f.member;
    if (!figure.known()) {
      figures[std::string(f.key)] = nullptr;
      continue;
    }
    figures[std::string(f.key)] = {{"value", *figure.value}, {"unit", base_unit(f.kind)}, {"source", figure.source},
                                   {"provenance", provenance_of(figure)}};
  }
  return {{"slug", gpu.slug}, {"name", gpu.name}, {"aliases", gpu.aliases}, {"architecture", gpu.architecture},
          {"compute_capability", gpu.compute_capability}, {"figures", figures}};
}

Gpu gpu_from_json(const json& record) {
  Gpu gpu;
  const auto text = [&](const char* field) -> std::string {
    if (!record.contains(field) || !record[field].is_string() || record[field].get<std::string>().empty())
      throw InvalidArgument(cat("GPU record: ", field, " is missing, must be a text"));
    return record[field].get<std::string>();
  };
  gpu.slug = text("slug");
  gpu.name = text("name");
  gpu.architecture = text("architecture");
  gpu.compute_capability = text("compute_capability");
  if (record.contains("aliases")) gpu.aliases = record["aliases"].get<std::vector<std::string>>();
  if (!record.contains("figures") || !record["figures"].is_object())
    throw InvalidArgument(cat("GPU record ", gpu.slug, ": figures is missing, must be an object"));
  for (const auto& [key, entry] : record["figures"].items()) {
    const auto field = std::find_if(figure_fields().begin(), figure_fields().end(),
                                    [&, name = std::string_view(key)](const FigureField& f) { return f.key == name; });
    if (field == figure_fields().end()) throw InvalidArgument(cat("GPU record ", gpu.slug, ": \"", key, "\" is no figure"));
    if (!entry.is_object() || !entry.value("value", json{}).is_number() || entry.value("source", "").empty())
      throw InvalidArgument(cat("GPU record ", gpu.slug, ": ", key, " needs a value, a unit and a source"));
    const auto factor = unit_factor(field->kind, entry.value("unit", ""));
    if (!factor) throw InvalidArgument(cat("GPU record ", gpu.slug, ": ", key, " must be ", allowed_units(field->kind)));
    gpu.*field->member = {.value = entry["value"].get<double>() * *factor, .source = entry["source"].get<std::string>()};
  }
  for (const char* needed : {"sm_count", "clock", "memory", "hbm_bandwidth", "l2", "fp32_flops", "bf16_flops", "pcie_bandwidth", "tdp"})
    for (const FigureField& f : figure_fields())
      if (f.key == needed && !((gpu.*f.member).or_else(0) > 0))
        throw InvalidArgument(cat("GPU record ", gpu.slug, ": ", needed, " is missing, must be positive"));
  return gpu;
}

}  // namespace kvatlas::sim
