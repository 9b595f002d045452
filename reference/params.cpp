#include "reference/params.hpp"

#include <charconv>
#include <cmath>

#include "core/errors.hpp"

namespace kvatlas {

const char* name_of(ParamType type) {
  switch (type) {
    case ParamType::integer: return "integer";
    case ParamType::number: return "number";
    case ParamType::flag: return "flag";
    case ParamType::choice: return "choice";
  }
  return "?";
}

ParamRow defaults_of(std::span<const ParamSpec> specs) {
  ParamRow row;
  for (const ParamSpec& s : specs) row.push_back(s.default_value);
  return row;
}

std::optional<std::int64_t> parse_size(std::string_view text) {
  std::int64_t factor = 1;
  if (!text.empty()) {
    const char suffix = text.back();
    if (suffix == 'K' || suffix == 'k') factor = 1 << 10;
    if (suffix == 'M' || suffix == 'm') factor = 1 << 20;
    if (factor > 1) text.remove_suffix(1);
  }
  std::int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  if (n > INT64_MAX / factor || n < INT64_MIN / factor) return std::nullopt;
  return n * factor;
}

namespace {

std::string allowed(const ParamSpec& spec) {
  if (spec.type == ParamType::flag) return "true or false";
  if (spec.type == ParamType::choice) {
    std::string names;
    for (const std::string_view c : spec.choices) names += cat(names.empty() ? "" : ", ", c);
    return cat("one of ", names);
  }
  return cat(spec.type == ParamType::integer ? "an integer" : "a number", " from ", spec.min, " to ", spec.max);
}

}  // namespace

double parse_value(const ParamSpec& spec, std::string_view method, std::string_view text) {
  const auto refuse = [&]() -> InvalidArgument {
    return InvalidArgument(cat(method, ": ", spec.name, " is \"", text, "\", must be ", allowed(spec)));
  };
  if (spec.type == ParamType::flag) {
    if (text == "true" || text == "1" || text == "on") return 1;
    if (text == "false" || text == "0" || text == "off") return 0;
    throw refuse();
  }
  if (spec.type == ParamType::choice) {
    for (std::size_t i = 0; i < spec.choices.size(); ++i)
      if (spec.choices[i] == text) return static_cast<double>(i);
    throw refuse();
  }
  double v = 0;
  if (const auto size = parse_size(text)) {
    v = static_cast<double>(*size);
  } else {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
    if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(v)) throw refuse();
    if (spec.type == ParamType::integer && v != std::floor(v)) throw refuse();
  }
  if (v < spec.min || v > spec.max) throw refuse();
  return v;
}

std::string format_value(const ParamSpec& spec, double value) {
  if (spec.type == ParamType::flag) return value != 0 ? "true" : "false";
  if (spec.type == ParamType::choice) return std::string(spec.choices[static_cast<std::size_t>(value)]);
  if (spec.type == ParamType::integer) return cat(static_cast<std::int64_t>(value));
  return cat(value);
}

}  // namespace kvatlas
