#include "cli/commands/support/table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ostream>
#include <sstream>

namespace kvatlas::cli {

namespace {

/// Characters, not bytes: UTF-8 continuation bytes take no column.
std::size_t columns_of(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

std::string pad(const std::string& text, std::size_t width, Align align) {
  const std::string space(width > columns_of(text) ? width - columns_of(text) : 0, ' ');
  return align == Align::left ? text + space : space + text;
}

}  // namespace

std::vector<std::string> wrap(const std::string& text, std::size_t width) {
  std::vector<std::string> lines(1);
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (!lines.back().empty() && columns_of(lines.back()) + 1 + columns_of(word) > width) lines.emplace_back();
    if (!lines.back().empty()) lines.back() += ' ';
    lines.back() += word;
  }
  return lines;
}

void Table::print(std::ostream& out, std::size_t indent) const {
  const std::size_t n = columns_.size();
  std::vector<std::size_t> width(n);
  for (std::size_t i = 0; i < n; ++i) {
    width[i] = columns_of(columns_[i].title);
    for (const auto& row : rows_)
      if (row.size() == n) width[i] = std::max(width[i], columns_of(row[i]));
  }
  std::size_t used = indent;
  for (std::size_t i = 0; i + 1 < n; ++i) used += width[i] + 2;
  constexpr std::size_t kNarrowest = 16;
  if (columns_.back().align == Align::left && used + width.back() > kLineWidth)
    width.back() = std::max(kNarrowest, kLineWidth > used ? kLineWidth - used : 0);

  const auto print_row = [&](const std::vector<std::string>& cells) {
    const std::vector<std::string> last = columns_.back().align == Align::left ? wrap(cells.back(), width.back()) : std::vector{cells.back()};
    for (std::size_t k = 0; k < last.size(); ++k) {
      std::string line(indent, ' ');
      for (std::size_t i = 0; i < n; ++i) {
        const std::string& cell = i + 1 == n ? last[k] : (k == 0 ? cells[i] : std::string());
        line += pad(cell, width[i], columns_[i].align);
        if (i + 1 < n) line += "  ";
      }
      line.erase(line.find_last_not_of(' ') + 1);
      out << line << "\n";
    }
  };
  std::vector<std::string> titles;
  for (const Column& c : columns_) titles.push_back(c.title);
  print_row(titles);
  for (const auto& row : rows_) {
    if (row.size() == n) print_row(row);
    else out << std::string(indent, ' ') << row[0] << "\n";
  }
}

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

}  // namespace kvatlas::cli
