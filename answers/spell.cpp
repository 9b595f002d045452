#include "answers/spell.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace kvatlas::answers {

std::string spell_bytes(double bytes) {
  static constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  double v = bytes;
  while (std::fabs(v) >= 10240 && unit + 1 < kUnits.size()) v /= 1024, ++unit;
  if (unit == 0) return spell_count(bytes) + " B";
  // A value of four digits reads better one unit up: 1.50 GiB, not 1536 MiB.
  if (std::fabs(v) >= 1024 && unit + 1 < kUnits.size()) v /= 1024, ++unit;
  return fmt::format("{:.{}f} {}", v, std::fabs(v) < 10 ? 2 : std::fabs(v) < 100 ? 1 : 0, kUnits[unit]);
}

std::string spell_count(double n) {
  const std::string digits = fmt::format("{:.0f}", std::fabs(n));
  std::string text = n < 0 ? "-" : "";
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text.push_back(',');
    text.push_back(digits[i]);
  }
  return text;
}

std::string spell_number(std::optional<double> value) {
  if (!value) return "-";
  const double magnitude = std::fabs(*value);
  if (magnitude >= 1000) return spell_count(*value);
  if (magnitude == 0) return "0";
  if (magnitude < 1e-3) return fmt::format("{:.2e}", *value);
  const int before = static_cast<int>(std::floor(std::log10(magnitude))) + 1;
  std::string text = fmt::format("{:.{}f}", *value, std::clamp(4 - std::max(before, 0), 0, 5));
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

std::string spell_si(double value, const char* unit) {
  static constexpr std::array<const char*, 6> kPrefixes{"", "k", "M", "G", "T", "P"};
  if (value == 0) return "0";
  std::size_t prefix = 0;
  while (std::fabs(value) >= 1000 && prefix + 1 < kPrefixes.size()) value /= 1000, ++prefix;
  return fmt::format("{:.{}f} {}{}", value, std::fabs(value) < 10 ? 2 : std::fabs(value) < 100 ? 1 : 0, kPrefixes[prefix], unit);
}

}  // namespace kvatlas::answers
