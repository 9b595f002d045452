#include "answers/record.hpp"

#include <charconv>
#include <map>
#include <set>
#include <utility>

#include "models/registry.hpp"

namespace kvatlas::answers {

namespace {

Json bound_value(const ParamSpec& spec, double bound) {
  if (spec.type == ParamType::flag || spec.type == ParamType::choice) return nullptr;
  return param_value(spec, bound);
}

Json serving_record(const Serving& s) {
  const auto answer = [](const Serving::Answer& a) { return Json{{"works", name_of(a.works)}, {"reason", text_or_null(a.reason)}}; };
  return {{"prefix_cache", answer(s.prefix_cache)},       {"paged_cache", answer(s.paged_cache)},
          {"chunked_prefill", answer(s.chunked_prefill)}, {"cuda_graphs", answer(s.cuda_graphs)},
          {"tensor_parallelism", answer(s.tensor_parallelism)}, {"speculation", answer(s.speculation)},
          {"multi_turn", answer(s.multi_turn)}};
}

Json face_names(const Method& m) {
  Json faces = Json::array();
  const std::pair<const char*, bool> all[] = {
      {"ledger_formula", m.ledger_formula != nullptr}, {"decode_plan", m.decode_plan != nullptr},
      {"prefill_plan", m.prefill_plan != nullptr}, {"released_decode_plan", m.released_decode_plan != nullptr},
      {"open", m.open != nullptr}, {"open_side", m.open_side != nullptr}, {"open_group", m.open_group != nullptr},
      {"select_blocks", m.select_blocks != nullptr}, {"speculate", m.speculate != nullptr}, {"convert", m.convert != nullptr}};
  for (const auto& [name, present] : all)
    if (present) faces.push_back(name);
  return faces;
}

Json kernel_names(const Method& m) {
  std::set<std::string> names;
  if (const auto shape = example_shape(m)) {
    const ParamRow row = defaults_of(m.params);
    const History history{.prompt = Tokens(32768), .generated = Tokens(128)};
    for (const auto& plan : {m.decode_plan, m.prefill_plan})
      if (plan != nullptr) {
        const Plan made = plan(row, *shape, history, {});  // outlives the loop over its calls
        for (const KernelCall& call : made.calls()) names.insert(name_of(call.kernel));
      }
  }
  return Json(names);
}

}  // namespace

Json text_or_null(const char* text) { return text == nullptr || text[0] == '\0' ? Json(nullptr) : Json(text); }

Json published_value(const Claim& claim) {
  double value = 0;
  const char* end = claim.published.data() + claim.published.size();
  const auto [stop, error] = std::from_chars(claim.published.data(), end, value);
  return error == std::errc{} && stop == end ? Json(value) : Json(claim.published);
}

Json param_value(const ParamSpec& spec, double value) {
  switch (spec.type) {
    case ParamType::flag: return value != 0;
    case ParamType::choice: return format_value(spec, value);
    case ParamType::integer: return static_cast<std::int64_t>(value);
    case ParamType::number: break;
  }
  return value;
}

std::optional<CacheShape> example_shape(const Method& method) {
  for (const char* model : {"llama-3.1-8b", "llama-2-7b", "deepseek-v3"}) {
    const CacheShape& shape = models::find_model(model).cache;
    if (!why_not(method, defaults_of(method.params), shape)) return shape;
  }
  return std::nullopt;
}

Json method_record(const Method& m) {
  Json claims = Json::array();
  for (const Claim& c : all_claims())
    if (c.method == m.slug)
      claims.push_back({{"metric", c.metric}, {"value", published_value(c)}, {"unit", text_or_null(c.unit.c_str())}, {"setup", c.conditions()},
                        {"source", c.source}, {"provenance", "published"}});
  Json params = Json::array();
  for (const ParamSpec& p : m.params) {
    Json choices = nullptr;
    if (p.type == ParamType::choice) {
      choices = Json::array();
      for (const std::string_view c : p.choices) choices.push_back(c);
    }
    params.push_back({{"name", p.name}, {"type", name_of(p.type)}, {"unit", text_or_null(p.unit)},
                      {"default", param_value(p, p.default_value)}, {"min", bound_value(p, p.min)},
                      {"max", bound_value(p, p.max)}, {"choices", choices}, {"help", p.help}});
  }
  Json needs = Json::array(), events = Json::array(), compat = Json::array(), deployable = Json::array();
  for (const Need n : m.needs) needs.push_back(name_of(n));
  for (const EventKind e : m.events) events.push_back(name_of(e));
  for (const Compat& c : m.compat) compat.push_back({{"setting", c.setting}, {"defect", c.defect}});
  for (const Deployable& d : m.deployable)
    deployable.push_back({{"engine", d.engine}, {"min_version", d.min_version}, {"flag", d.flag}, {"source", d.source}, {"provenance", "published"}});
  return {{"slug", m.slug},
          {"name", m.name},
          {"family", name_of(m.family)},
          {"paper", {{"title", m.paper.title}, {"url", m.paper.url}, {"year", m.paper.year}}},
          {"claims", claims},
          {"params", params},
          {"needs", needs},
          {"events", events},
          {"kernels", kernel_names(m)},
          {"compat", compat},
          {"serving", serving_record(m.serving)},
          {"deployable", deployable},
          {"data_dependent", m.data_dependent},
          {"equivalent_to", text_or_null(m.equivalent_to)},
          {"exact_when", m.exact_when == nullptr ? Json(nullptr) : Json(m.exact_when)},
          {"faces", face_names(m)},
          {"notes", text_or_null(m.notes)}};
}

Json ledger_rows(const Ledger& ledger, std::string_view provenance) {
  Json rows = Json::array();
  for (const LedgerEntry& e : ledger.entries())
    rows.push_back({{"component", e.component}, {"side", name_of(e.side)}, {"bytes", e.bytes.value},
                    {"scope", name_of(e.scope)}, {"provenance", provenance}});
  return rows;
}

Json plan_rows(const Plan& plan) {
  struct Sum {
    double reads = 0, writes = 0, read_sectors = 0, write_sectors = 0, flops = 0, launches = 0;
  };
  // Rows in the order of their first call: the order of a layer's work.
  std::vector<std::pair<KernelId, Stage>> order;
  std::map<std::pair<KernelId, Stage>, Sum> sums;
  for (const KernelCall& c : plan.calls()) {
    const auto key = std::pair(c.kernel, c.stage);
    if (!sums.contains(key)) order.push_back(key);
    Sum& s = sums[key];
    s.reads += static_cast<double>(c.traffic.read_bytes) * c.launches;
    s.writes += static_cast<double>(c.traffic.write_bytes) * c.launches;
    s.read_sectors += static_cast<double>(c.traffic.read_sectors) * c.launches;
    s.write_sectors += static_cast<double>(c.traffic.write_sectors) * c.launches;
    s.flops += (c.operations.tensor_flops + c.operations.vector_flops) * c.launches;
    s.launches += c.launches;
  }
  Json rows = Json::array();
  for (const auto& key : order) {
    const Sum& s = sums[key];
    rows.push_back({{"kernel", name_of(key.first)}, {"stage", name_of(key.second)}, {"reads_bytes", s.reads},
                    {"writes_bytes", s.writes}, {"flops", s.flops}, {"launches", s.launches},
                    {"read_sectors", s.read_sectors}, {"write_sectors", s.write_sectors}, {"provenance", "computed"}});
  }
  return rows;
}

}  // namespace kvatlas::answers
