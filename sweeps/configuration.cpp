#include "sweeps/configuration.hpp"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

#include "core/errors.hpp"
#include "models/registry.hpp"

namespace kvatlas::sweep {

using nlohmann::json;

namespace {

/// Drops what says where a figure comes from: a path must not make two equal models differ.
void drop_origins(json& value) {
  if (value.is_object())
    for (const char* key : {"source", "warnings", "aliases", "name", "published", "provenance"}) value.erase(key);
  if (value.is_structured())
    for (json& child : value) drop_origins(child);
}

Key fingerprint(const models::Model& model) {
  json record = models::to_json(model);
  for (json& g : record["groups"])  // matrices of a group are told apart by name
    for (json& m : g["matrices"]) m["role"] = cat(m["role"].get<std::string>(), "/", m["name"].get<std::string>());
  drop_origins(record);
  return murmur3(record.dump());
}

bool has_released_plan(const Recipe& recipe) {
  return std::any_of(recipe.rules().begin(), recipe.rules().end(), [](const Rule& r) {
    return r.key.method->released_decode_plan != nullptr || r.value.method->released_decode_plan != nullptr;
  });
}

}  // namespace

std::string model_identity(const models::Model& model) {
  const Key own = fingerprint(model);
  for (const models::Model& shipped : models::all_models())
    if (shipped.slug == model.slug && fingerprint(shipped) == own) return model.slug;
  return cat(model.slug, "#", hex(own));
}

namespace {

std::string canonical_with(const sim::Deployment& d, const std::string& model, const std::string& gpu) {
  return json{{"chunk", d.chunk.value},
              {"dp", d.dp},
              {"engine", (d.engine != nullptr ? d.engine : &sim::default_engine())->slug},
              {"ep", d.ep},
              {"gpu", gpu},
              {"gpu_memory_utilization", d.gpu_memory_utilization},
              {"method", d.recipe.canonical()},
              {"model", model},
              {"plan", d.released_plan ? "released" : "ideal"},
              {"pp", d.pp},
              {"tp", d.tp},
              {"weights", sim::name_of(d.weights)}}
      .dump();
}

}  // namespace

std::string canonical(const sim::Deployment& d) { return canonical_with(d, model_identity(*d.model), sim::canonical(d.gpu)); }

Shard parse_shard(std::string_view text) {
  Shard s{.index = 0, .count = 0};
  const std::size_t slash = std::min(text.find('/'), text.size());
  const char* const end = text.data() + text.size();
  const auto a = std::from_chars(text.data(), text.data() + slash, s.index);
  const auto b = slash < text.size() ? std::from_chars(text.data() + slash + 1, end, s.count) : a;
  if (a.ec != std::errc{} || a.ptr != text.data() + slash || b.ec != std::errc{} || b.ptr != end || s.index < 1 || s.index > s.count || s.count > 100'000)
    throw InvalidArgument(cat("shard is \"", text, "\", must be I/N with 1 <= I <= N <= 100000"));
  return s;
}

sim::Deployment deployment(const Spec& spec, const Configuration& c) {
  sim::Deployment d;
  d.model = &spec.models[c.model];
  d.gpu = spec.gpus[c.gpu];
  d.recipe = spec.recipes[c.recipe];
  d.weights = c.weights;
  d.tp = c.tp;
  d.engine = c.engine;
  d.gpu_memory_utilization = spec.gpu_memory_utilization;
  d.chunk = spec.chunk;
  d.released_plan = c.released;
  return d;
}

WorkList work_list(const Spec& spec, const Shard& shard) {
  WorkList list;
  std::vector<std::string> models, gpus;
  for (const models::Model& m : spec.models) models.push_back(model_identity(m));
  for (const sim::Gpu& g : spec.gpus) gpus.push_back(sim::canonical(g));
  for (const Recipe& r : spec.recipes)
    if (std::find(spec.released.begin(), spec.released.end(), true) != spec.released.end() && !has_released_plan(r))
      list.left_out.push_back(cat(r.canonical(), " has no released plan: its ideal plan is the only one"));
  std::set<Key> seen;
  Configuration c;
  for (c.model = 0; c.model < spec.models.size(); ++c.model)
    for (c.gpu = 0; c.gpu < spec.gpus.size(); ++c.gpu)
      for (const sim::WeightFormat w : spec.weights)
        for (const sim::Engine* e : spec.engines)
          for (const int tp : spec.tp) {
            c.weights = w;
            c.engine = e;
            c.tp = tp;
            const std::size_t before = list.configurations.size();
            for (c.recipe = 0; c.recipe < spec.recipes.size(); ++c.recipe)
              for (const bool released : spec.released) {
                if (released && !has_released_plan(spec.recipes[c.recipe])) continue;
                c.released = released;
                c.group = list.groups.size();
                c.text = canonical_with(deployment(spec, c), models[c.model], gpus[c.gpu]);
                c.key = murmur3(c.text);
                if (shard.holds(c.key) && seen.insert(c.key).second) list.configurations.push_back(c);
              }
            if (list.configurations.size() == before) continue;
            sim::Deployment baseline = deployment(spec, list.configurations.back());
            baseline.recipe = Recipe::parse("full");
            baseline.released_plan = false;
            list.groups.push_back({std::move(baseline)});
          }
  return list;
}

}  // namespace kvatlas::sweep
