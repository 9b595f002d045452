#include "reference/compose/recipe.hpp"

#include <algorithm>
#include <charconv>

#include "core/errors.hpp"
#include "reference/registry.hpp"

namespace kvatlas {

namespace {

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::optional<int> parse_int(std::string_view text) {
  int n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() || n < 0) return std::nullopt;
  return n;
}

/// One selector, or nothing when the text is not one.
std::optional<LayerSelector> parse_selector(std::string_view text) {
  using Kind = LayerSelector::Kind;
  if (text == "*") return LayerSelector{Kind::all};
  if (text == "windowed") return LayerSelector{Kind::windowed};
  if (text == "global") return LayerSelector{Kind::global};
  for (const auto& [prefix, kind] : {std::pair{"first", Kind::first}, std::pair{"last", Kind::last}})
    if (text.starts_with(prefix))
      if (const auto n = parse_int(text.substr(std::string_view(prefix).size()))) return LayerSelector{kind, *n};
  const std::size_t dash = text.find('-');
  const auto a = parse_int(text.substr(0, dash));
  const auto b = dash == std::string_view::npos ? a : parse_int(text.substr(dash + 1));
  if (a && b && *a <= *b) return LayerSelector{Kind::range, *a, *b};
  return std::nullopt;
}

std::string spell(const LayerSelector& s) {
  switch (s.kind) {
    case LayerSelector::Kind::all: return "*";
    case LayerSelector::Kind::windowed: return "windowed";
    case LayerSelector::Kind::global: return "global";
    case LayerSelector::Kind::first: return cat("first", s.a);
    case LayerSelector::Kind::last: return cat("last", s.a);
    case LayerSelector::Kind::range: return s.a == s.b ? cat(s.a) : cat(s.a, "-", s.b);
  }
  return "?";
}

bool has_rows(const LayerClass& c) { return c.kind == RowKind::kv || c.kind == RowKind::latent || c.kind == RowKind::pooled; }

bool matches(const Rule& rule, const LayerClass& c, int layer, int layers) {
  return std::any_of(rule.layers.begin(), rule.layers.end(), [&](const LayerSelector& s) {
    switch (s.kind) {
      case LayerSelector::Kind::all: return true;
      case LayerSelector::Kind::windowed: return c.window.value > 0;
      case LayerSelector::Kind::global: return c.window.value == 0;
      case LayerSelector::Kind::first: return layer < s.a;
      case LayerSelector::Kind::last: return layer >= layers - s.a;
      case LayerSelector::Kind::range: return layer >= s.a && layer <= s.b;
    }
    return false;
  });
}

/// The end of the selector list of "layers=0-1,last2:full": position of its ':', or npos when the text has no selector.
std::size_t selector_end(std::string_view text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos) return colon;
  std::string_view head = text.substr(0, colon);
  if (head.starts_with("layers=")) return colon;
  return parse_selector(head) && !parse_int(head) ? colon : std::string_view::npos;
}

std::vector<LayerSelector> parse_selectors(std::string_view head) {
  if (head.starts_with("layers=")) head.remove_prefix(7);
  std::vector<LayerSelector> out;
  for (const std::string_view part : split(head, ',')) {
    const auto s = parse_selector(part);
    if (!s)
      throw InvalidArgument(cat("layers is \"", part, "\", must be A-B, a number, firstN, lastN, windowed, global or *"));
    out.push_back(*s);
  }
  return out;
}

}  // namespace

std::string MethodChoice::canonical() const {
  std::string text = method->slug;
  bool first = true;
  for (std::size_t i = 0; i < method->params.size(); ++i) {
    if (row[i] == method->params[i].default_value) continue;
    text += cat(first ? ":" : ",", method->params[i].name, "=", format_value(method->params[i], row[i]));
    first = false;
  }
  return text;
}

MethodChoice parse_choice(std::string_view text) {
  const std::size_t colon = text.find(':');
  MethodChoice choice;
  choice.method = &find_method(text.substr(0, colon));
  choice.row = defaults_of(choice.method->params);
  if (colon == std::string_view::npos) return choice;
  std::vector<std::string_view> names;
  for (const ParamSpec& s : choice.method->params) names.emplace_back(s.name);
  for (const std::string_view part : split(text.substr(colon + 1), ',')) {
    const std::size_t equals = part.find('=');
    const std::string_view name = part.substr(0, equals);
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end() && names.empty())
      throw InvalidArgument(cat(choice.method->slug, ": \"", name, "\" is no parameter; the method has none"));
    if (at == names.end()) throw InvalidArgument(unknown_name(cat("parameter of ", choice.method->slug), name, names));
    if (equals == std::string_view::npos) throw InvalidArgument(cat(choice.method->slug, ": ", name, " lacks a value, write ", name, "=VALUE"));
    const auto i = static_cast<std::size_t>(at - names.begin());
    choice.row[i] = parse_value(choice.method->params[i], choice.method->slug, part.substr(equals + 1));
  }
  return choice;
}

Recipe Recipe::of(MethodChoice choice) {
  Recipe r;
  r.rules_.push_back({.layers = {LayerSelector{}}, .key = choice, .value = choice});
  return r;
}

Recipe Recipe::parse(std::string_view text) {
  for (const Preset& p : presets())
    if (text == p.name) return parse(p.recipe);
  if (const std::size_t colon = text.find(':'); colon != std::string_view::npos && text.find(';') == std::string_view::npos) {
    // "vllm:xyz" is meant as a preset when the part before the colon names a deployment.
    std::vector<std::string_view> names;
    bool deployment = false;
    for (const Preset& p : presets()) {
      names.push_back(p.name);
      deployment = deployment || p.name.substr(0, p.name.find(':')) == text.substr(0, colon);
    }
    if (deployment) throw InvalidArgument(unknown_name("preset", text, names));
  }
  Recipe r;
  std::optional<MethodChoice> key, value;
  for (const std::string_view piece : split(text, ';')) {
    if (piece.empty()) throw InvalidArgument(cat("method is \"", text, "\", must not have an empty rule"));
    if (piece.starts_with("k=") || piece.starts_with("v=")) {
      std::optional<MethodChoice>& side = piece.front() == 'k' ? key : value;
      if (side) throw InvalidArgument(cat("method names ", piece.front(), "= twice"));
      side = parse_choice(piece.substr(2));
      continue;
    }
    if (piece.starts_with("sinks=") || piece.starts_with("recent=")) {
      const std::size_t equals = piece.find('='), colon = piece.find(':');
      const auto n = parse_size(piece.substr(equals + 1, colon == std::string_view::npos ? colon : colon - equals - 1));
      if (!n || *n < 0 || colon == std::string_view::npos || piece.substr(colon + 1) != "full")
        throw InvalidArgument(cat("rule is \"", piece, "\", must be sinks=N:full or recent=N:full"));
      (piece.starts_with("sinks=") ? r.sinks_ : r.recent_) = Tokens(*n);
      continue;
    }
    Rule rule;
    std::string_view body = piece;
    if (const std::size_t end = selector_end(piece); end != std::string_view::npos) {
      rule.layers = parse_selectors(piece.substr(0, end));
      body = piece.substr(end + 1);
    } else {
      rule.layers = {LayerSelector{}};
    }
    rule.key = rule.value = parse_choice(body);
    r.rules_.push_back(std::move(rule));
  }
  if (key || value) {
    if (!r.rules_.empty()) throw InvalidArgument("method mixes k=/v= with rules by layer; use one of the two");
    const MethodChoice plain = parse_choice("full");
    r.rules_.push_back({.layers = {LayerSelector{}}, .key = key.value_or(plain), .value = value.value_or(plain)});
  }
  if (r.rules_.empty()) throw InvalidArgument(cat("method is \"", text, "\", must name a method"));
  return r;
}

std::string Recipe::canonical() const {
  std::string text;
  if (sinks_.value > 0) text += cat("sinks=", sinks_.value, ":full;");
  if (recent_.value > 0) text += cat("recent=", recent_.value, ":full;");
  if (rules_.size() == 1 && rules_[0].layers.size() == 1 && rules_[0].layers[0].kind == LayerSelector::Kind::all) {
    const Rule& r = rules_[0];
    return text + (r.apart() ? cat("k=", r.key.canonical(), ";v=", r.value.canonical()) : r.key.canonical());
  }
  for (std::size_t i = 0; i < rules_.size(); ++i) {
    std::string layers;
    for (const LayerSelector& s : rules_[i].layers) layers += cat(layers.empty() ? "" : ",", spell(s));
    const bool numbers = rules_[i].layers.size() > 1 || rules_[i].layers[0].kind == LayerSelector::Kind::range;
    text += cat(i > 0 ? ";" : "", numbers ? "layers=" : "", layers, ":", rules_[i].key.canonical());
  }
  return text;
}

std::optional<std::string> Recipe::why_not(const CacheShape& shape) const {
  if (auto reason = kvatlas::why_not(shape)) return reason;
  const int layers = [&] {
    int last = 0;
    for (const LayerClass& c : shape.classes)
      if (!c.layers.empty()) last = std::max(last, c.layers.back() + 1);
    return last;
  }();
  std::vector<std::vector<int>> served(rules_.size());
  for (const LayerClass& c : shape.classes)
    for (const int l : c.layers) {
      if (!has_rows(c)) continue;
      const auto rule = std::find_if(rules_.begin(), rules_.end(), [&](const Rule& r) { return matches(r, c, l, layers); });
      if (rule == rules_.end()) return cat("layer ", l, " matches no rule; end the rules with *:METHOD");
      served[static_cast<std::size_t>(rule - rules_.begin())].push_back(l);
    }
  for (std::size_t i = 0; i < rules_.size(); ++i) {
    if (served[i].empty()) continue;
    const Rule& rule = rules_[i];
    const CacheShape part = shape_of_layers(shape, served[i]);
    for (const MethodChoice* m : {&rule.key, &rule.value}) {
      if (m->method->ledger_formula == nullptr) return cat(m->method->slug, " keeps no cache of its own");
      if (auto reason = kvatlas::why_not(*m->method, m->row, part)) return cat(m->method->slug, ": ", *reason);
      if ((rule.apart() || sinks_.value > 0 || recent_.value > 0) && m->method->open_side == nullptr)
        return cat(m->method->slug, " codes keys and values together; sides, sinks= and recent= need methods that code them apart");
    }
    if (sinks_.value > 0 || recent_.value > 0)
      for (const LayerClass& c : part.classes)
        if (c.window.value > 0)
          return cat("window is ", c.window.value, " in layer ", c.layers.front(),
                     ", must be 0 with sinks= or recent=: the window drops its first rows, plain edges keep them; leave sinks= and recent= out for this model");
  }
  return std::nullopt;
}

BoundRecipe Recipe::bind(const CacheShape& shape) const {
  if (const auto reason = why_not(shape)) throw Unsupported(*reason);
  BoundRecipe bound;
  bound.shape_ = shape;
  bound.sinks_ = sinks_;
  bound.recent_ = recent_;
  int last = 0;
  for (const LayerClass& c : shape.classes)
    if (!c.layers.empty()) last = std::max(last, c.layers.back() + 1);
  std::vector<std::vector<int>> served(rules_.size());
  std::vector<int> states;
  for (const LayerClass& c : shape.classes)
    for (const int l : c.layers) {
      if (!has_rows(c)) {
        states.push_back(l);
        continue;
      }
      const auto rule = std::find_if(rules_.begin(), rules_.end(), [&](const Rule& r) { return matches(r, c, l, last); });
      served[static_cast<std::size_t>(rule - rules_.begin())].push_back(l);
    }
  for (std::size_t i = 0; i < rules_.size(); ++i)
    if (!served[i].empty()) bound.parts_.push_back({.rule = rules_[i], .shape = shape_of_layers(shape, served[i])});
  if (!states.empty())
    bound.parts_.push_back({.rule = Recipe::of(parse_choice("full")).rules_[0], .shape = shape_of_layers(shape, states), .plain_states = true});
  return bound;
}

}  // namespace kvatlas
