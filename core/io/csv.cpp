#include "core/io/csv.hpp"

#include "core/errors.hpp"

namespace kvatlas {

std::vector<CsvRow> parse_csv(std::string_view text, std::string_view file, std::span<const std::string_view> columns) {
  std::vector<CsvRow> rows;
  std::vector<std::string> cells(1);
  bool quoted = false;
  int line = 1, first_line = 1;
  const auto end_row = [&] {
    const bool blank = cells.size() == 1 && cells[0].empty();
    if (!blank && cells.size() != columns.size())
      throw InvalidArgument(cat(file, " line ", first_line, " has ", cells.size(), " cells, must have ", columns.size()));
    if (first_line == 1) {
      for (std::size_t i = 0; i < columns.size(); ++i)
        if (blank || cells[i] != columns[i])
          throw InvalidArgument(cat(file, " line 1 names column ", i + 1, " \"", blank ? "" : cells[i], "\", must be ", columns[i]));
    } else if (!blank) {
      rows.push_back({.line = first_line, .cells = std::move(cells)});
    }
    cells.assign(1, {});
    first_line = line;
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (quoted) {
      if (c != '"') {
        cells.back() += c;
      } else if (i + 1 < text.size() && text[i + 1] == '"') {
        cells.back() += text[++i];
      } else {
        quoted = false;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == ',') {
      cells.emplace_back();
    } else if (c == '\n') {
      end_row();
    } else if (c != '\r') {
      cells.back() += c;
    }
  }
  if (quoted) throw InvalidArgument(cat(file, " line ", first_line, " has a quote that does not end"));
  if (cells.size() > 1 || !cells[0].empty()) end_row();
  return rows;
}

}  // namespace kvatlas
