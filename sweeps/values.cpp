#include "sweeps/values.hpp"

#include <charconv>
#include <cmath>
#include <fmt/core.h>

#include "core/errors.hpp"
#include "reference/params.hpp"

namespace kvatlas::sweep {

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

/// The three texts of "A..BxC" or "A..B+C"; without a step "A..B" adds 1.
struct RangeText {
  std::string_view first, last, step = "1";
  char op = '+';
};

RangeText split_range(std::string_view text) {
  const std::size_t dots = text.find("..");
  RangeText r{.first = text.substr(0, dots), .last = text.substr(dots + 2)};
  if (const std::size_t at = r.last.find_first_of("x+"); at != std::string_view::npos) {
    r.op = r.last[at];
    r.step = r.last.substr(at + 1);
    r.last = r.last.substr(0, at);
  }
  return r;
}

InvalidArgument bad_range(std::string_view what, std::string_view text) {
  return InvalidArgument(cat(what, " is \"", text, "\", must be a number, a list A|B or a range A..BxC (multiply, C >= 2) or A..B+C (add, C > 0) with A <= B"));
}

InvalidArgument too_many(std::string_view what, std::string_view text) {
  return InvalidArgument(cat(what, " is \"", text, "\", must stand for at most ", kMostValues, " values"));
}

std::vector<std::int64_t> size_range(std::string_view what, std::string_view text) {
  const RangeText r = split_range(text);
  const auto first = parse_size(r.first), last = parse_size(r.last), step = parse_size(r.step);
  if (!first || !last || !step || *first > *last || *step < 1 || (r.op == 'x' && (*step < 2 || *first < 1)))
    throw bad_range(what, text);
  std::vector<std::int64_t> out;
  for (std::int64_t v = *first;;) {
    out.push_back(v);
    if (out.size() > kMostValues) throw too_many(what, text);
    if (r.op == 'x' ? v > *last / *step : v > *last - *step) return out;
    v = r.op == 'x' ? v * *step : v + *step;
  }
}

std::optional<double> parse_decimal(std::string_view text) {
  double v = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() || !std::isfinite(v)) return std::nullopt;
  return v;
}

/// A range with decimals. Values are first + i * step rounded to 12 digits, so 0.1..0.3+0.1 holds 0.3 and not 0.30000000000000004.
std::vector<std::string> decimal_range(std::string_view what, std::string_view text) {
  const RangeText r = split_range(text);
  const auto first = parse_decimal(r.first), last = parse_decimal(r.last), step = parse_decimal(r.step);
  if (!first || !last || !step || *first > *last || (r.op == 'x' ? *step <= 1 || *first <= 0 : *step <= 0))
    throw bad_range(what, text);
  std::vector<std::string> out;
  double v = *first;
  const double end = *last + 1e-9 * (std::abs(*last) + *step);
  for (std::int64_t i = 0; v <= end; ++i, v = r.op == 'x' ? v * *step : *first + static_cast<double>(i) * *step) {
    out.push_back(fmt::format("{:.12g}", v));
    if (out.size() > kMostValues) throw too_many(what, text);
  }
  return out;
}

}  // namespace

std::vector<std::int64_t> parse_sizes(std::string_view what, std::string_view text) {
  std::vector<std::int64_t> out;
  for (const std::string_view part : split(text, '|')) {
    if (part.find("..") != std::string_view::npos) {
      for (const std::int64_t v : size_range(what, part)) out.push_back(v);
    } else if (const auto v = parse_size(part)) {
      out.push_back(*v);
    } else {
      throw bad_range(what, text);
    }
  }
  return out;
}

std::vector<std::string> expand_value(std::string_view what, std::string_view text) {
  std::vector<std::string> out;
  for (const std::string_view part : split(text, '|')) {
    if (part.empty()) throw InvalidArgument(cat(what, " is \"", text, "\", must not have an empty entry"));
    if (part.find("..") == std::string_view::npos) {
      out.emplace_back(part);
      continue;
    }
    const RangeText r = split_range(part);
    if (parse_size(r.first) && parse_size(r.last) && parse_size(r.step)) {
      for (const std::int64_t v : size_range(what, part)) out.push_back(cat(v));
    } else {
      for (std::string& v : decimal_range(what, part)) out.push_back(std::move(v));
    }
  }
  return out;
}

std::vector<std::string> expand_recipe(std::string_view pattern) {
  std::vector<std::string> out{std::string()};
  while (!pattern.empty()) {
    // A value stands after '=' and ends where the recipe's grammar goes on; everything before it is copied.
    const std::size_t equals = pattern.find('=');
    const std::size_t copied = equals == std::string_view::npos ? pattern.size() : equals + 1;
    const std::string_view head = pattern.substr(0, copied);
    pattern.remove_prefix(copied);
    const std::size_t end = std::min(pattern.find_first_of(",;:"), pattern.size());
    const std::string_view value = equals == std::string_view::npos ? std::string_view() : pattern.substr(0, end);
    pattern.remove_prefix(value.size());
    std::string_view name = head.substr(0, copied - 1);
    name.remove_prefix(std::min(name.size(), name.find_last_of(",;:") + 1));
    const std::vector<std::string> values = value.empty() ? std::vector<std::string>{std::string()} : expand_value(name, value);
    if (values.size() > kMostValues / out.size()) throw too_many("method", pattern);
    std::vector<std::string> next;
    for (const std::string& prefix : out)
      for (const std::string& v : values) next.push_back(cat(prefix, head, v));
    out = std::move(next);
  }
  return out;
}

}  // namespace kvatlas::sweep
