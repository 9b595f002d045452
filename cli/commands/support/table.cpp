#include "cli/commands/support/table.hpp"

#include <algorithm>
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

}  // namespace kvatlas::cli
