#include "sweeps/settings.hpp"

#include <algorithm>
#include <set>

#include "core/errors.hpp"
#include "reference/registry.hpp"
#include "sweeps/values.hpp"

namespace kvatlas::sweep {

namespace {

constexpr CommonSetting kCommon[] = {
    {"bits", "2|4|8", "code widths that papers report and that fill 32-bit words"},
    {"key_bits", "2|3|4|8", "code widths of keys where a method sets them apart"},
    {"value_bits", "2|3|4|8", "code widths of values where a method sets them apart"},
    {"group_size", "32|64|128", "the finest and the coarsest grouping in common use"},
    {"residual_window", "32|128|256", "newest tokens kept plain"},
    {"format", "e4m3|e5m2", "the two 8-bit floats"},
    {"budget", "512..8192x2", "kept or attended tokens a head, from what papers push to what serving tolerates"},
    {"heavy_hitters", "128..2048x4", "tokens kept for their attention mass"},
    {"heavy", "512..8192x2", "tokens attended in a decode step"},
    {"capacity", "2048..16384x2", "slots of a cache of fixed size"},
    {"recent_window", "508|1020|2044|4092", "newest tokens kept; with 4 sinks whole powers of two"},
    {"keep_fraction", "0.125|0.25|0.5", "kept share of the context"},
    {"ratio", "0.25|0.5|0.75", "kept share where a method calls it a ratio"},
    {"rank", "64..512x2", "dimensions of a low-rank store"},
    {"page", "16|32|64", "tokens of a page that is scored as one"},
    {"threshold", "0.8|0.9|0.95", "share of the attention mass that chosen blocks reach"},
    {"stride", "8|16", "sampling of a block's antidiagonals"},
};

constexpr ComposedSetting kComposed[] = {
    {"k=kivi:bits=4;v=kivi:bits=2", "keys are the more sensitive side"},
    {"layers=first2:full;*:kivi:bits=2", "the first layers are the most sensitive"},
    {"sinks=4:full;*:kivi:bits=2", "attention sinks lose most under coarse codes"},
    {"layers=first2:full;*:quest", "retrieval papers keep the first layers dense"},
};

bool registered(std::string_view recipe) {
  try {
    (void)Recipe::parse(recipe);
    return true;
  } catch (const InvalidArgument&) {
    return false;
  }
}

}  // namespace

std::span<const CommonSetting> common_settings() { return kCommon; }
std::span<const ComposedSetting> composed_settings() { return kComposed; }

bool writes_in_order(const Method& method) {
  return std::ranges::none_of(method.needs, [](Need need) { return need == Need::diffusion_model || need == Need::marked_spans; });
}

std::vector<Recipe> default_recipes() {
  std::vector<Recipe> out;
  for (const Method* m : all_methods())
    if (writes_in_order(*m)) out.push_back(Recipe::parse(m->slug));
  return out;
}

Settings several_settings() {
  Settings s;
  std::set<std::string> seen;
  const auto add = [&](Recipe r) {
    if (seen.insert(r.canonical()).second) s.recipes.push_back(std::move(r));
  };
  for (const Method* m : all_methods()) {
    if (!writes_in_order(*m)) continue;
    add(Recipe::parse(m->slug));
    for (const CommonSetting& common : kCommon) {
      const auto has = [&](const ParamSpec& p) { return common.parameter == p.name; };
      if (std::none_of(m->params.begin(), m->params.end(), has)) continue;
      for (const std::string& value : expand_value(common.parameter, common.values)) {
        try {
          add(Recipe::parse(cat(m->slug, ":", common.parameter, "=", value)));
        } catch (const InvalidArgument& e) {
          s.left_out.emplace_back(e.what());
        }
      }
    }
  }
  for (const ComposedSetting& composed : kComposed)
    if (registered(composed.recipe)) add(Recipe::parse(composed.recipe));
  return s;
}

}  // namespace kvatlas::sweep
