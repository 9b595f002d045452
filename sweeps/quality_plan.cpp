#include "sweeps/quality_plan.hpp"

#include <algorithm>
#include <array>

#include "core/errors.hpp"
#include "reference/registry.hpp"
#include "sweeps/document.hpp"

namespace kvatlas::sweep {

namespace {

using nlohmann::json;

/// "budget=C/4" at a context of 1024: "budget=256".
std::string at_context(std::string_view setting, std::int64_t context) {
  std::string out;
  for (std::size_t i = 0; i < setting.size();) {
    if (!setting.substr(i).starts_with("=C/")) {
      out += setting[i++];
      continue;
    }
    i += 3;
    std::int64_t share = 0;
    while (i < setting.size() && setting[i] >= '0' && setting[i] <= '9' && share < 1000000) share = share * 10 + (setting[i++] - '0');
    if (share < 1) throw InvalidArgument(cat("setting \"", setting, "\" has C/0, must be a share of the context like C/8"));
    out += cat("=", context / share);
  }
  return out;
}

/// Whether a method has every parameter that a setting names.
bool has_params(const Method& m, std::string_view setting) {
  for (std::size_t at = 0; at < setting.size();) {
    const std::size_t comma = std::min(setting.find(',', at), setting.size()), equals = std::min(setting.find('=', at), comma);
    const std::string_view name = setting.substr(at, equals - at);
    if (std::ranges::none_of(m.params, [&](const ParamSpec& p) { return p.name == name; })) return false;
    at = comma + 1;
  }
  return true;
}

/// A method's recipes at a context: of its own settings, which must be possible, or those of the common ones that its ranges allow.
std::vector<Recipe> recipes_of(const QualityPlan& plan, const Method& m, std::int64_t context) {
  std::vector<Recipe> out;
  if (const auto own = plan.methods.find(m.slug); own != plan.methods.end()) {
    for (const std::string& setting : own->second) out.push_back(Recipe::parse(cat(m.slug, ":", at_context(setting, context))));
    return out;
  }
  for (const auto& settings : plan.settings) {
    if (!std::ranges::all_of(settings, [&](const std::string& s) { return has_params(m, s); })) continue;
    for (const std::string& setting : settings) {
      const std::string params = at_context(setting, context);
      try {
        out.push_back(Recipe::parse(cat(m.slug, ":", params)));
      } catch (const InvalidArgument&) {
        continue;  // outside this method's range
      }
    }
    break;
  }
  if (out.empty()) out.push_back(Recipe::parse(m.slug));
  return out;
}

std::vector<std::string> texts_of(const Node& list) {
  std::vector<std::string> out;
  for (const Node& item : list.items()) out.push_back(item.text());
  if (out.empty()) list.refuse("at least one setting");
  return out;
}

}  // namespace

std::vector<Recipe> QualityPlan::recipes(std::int64_t context) const {
  std::vector<Recipe> out{Recipe::parse("full")};
  for (const Method* m : all_methods()) {
    if (m->family == Family::baseline) continue;
    for (Recipe& r : recipes_of(*this, *m, context))
      if (std::ranges::none_of(out, [&](const Recipe& o) { return o.canonical() == r.canonical(); })) out.push_back(std::move(r));
  }
  return out;
}

QualityPlan read_quality_plan(std::string_view text, std::string_view origin) {
  const json document = parse_document(text, origin);
  const Node root(document, std::string(origin), true);
  constexpr std::array<std::string_view, 11> kKeys{"comment", "contexts", "protocol", "scored", "windows", "chunk", "seed", "dtype", "batch", "settings", "methods"};
  root.require_keys(kKeys);
  QualityPlan plan;
  if (!root.has("contexts")) root.fail("contexts is missing");
  plan.contexts = root.at("contexts").sizes(16);
  if (root.has("protocol")) plan.protocol = root.at("protocol").text();
  if (plan.protocol != "a" && plan.protocol != "b") root.at("protocol").refuse("a or b");
  if (root.has("scored")) plan.scored = root.at("scored").size(8, 1 << 20);
  if (root.has("windows")) plan.windows = root.at("windows").size(1, 4096);
  if (plan.protocol == "b") plan.chunk = root.has("chunk") ? root.at("chunk").size(1, 1 << 20) : 512;
  else if (root.has("chunk")) root.at("chunk").fail("says nothing about protocol a");
  if (root.has("seed")) plan.seed = root.at("seed").size(0, 2147483647);
  if (root.has("batch")) plan.batch = root.at("batch").size(1, 1024);
  if (root.has("dtype")) {
    const std::string name = root.at("dtype").text();
    if (name != "bf16" && name != "fp16" && name != "f32") root.at("dtype").refuse("bf16, fp16 or f32");
    plan.dtype = name == "f32" ? Dtype::f32 : name == "fp16" ? Dtype::f16 : Dtype::bf16;
  }
  if (root.has("settings"))
    for (const Node& list : root.at("settings").items()) plan.settings.push_back(texts_of(list));
  if (root.has("methods"))
    for (const auto& [slug, list] : root.at("methods").value().items()) {
      try {
        plan.methods[find_method(slug).slug] = texts_of(Node(list, cat(root.at("methods").path(), ".", slug)));
      } catch (const InvalidArgument& e) {
        root.at("methods").fail(e.what());
      }
    }
  try {
    for (const std::int64_t context : plan.contexts) (void)plan.recipes(context);
  } catch (const InvalidArgument& e) {
    root.fail(e.what());
  }
  return plan;
}

}  // namespace kvatlas::sweep
