#include "core/io/csv.hpp"

#include <algorithm>

#include "core/errors.hpp"

namespace kvatlas {

namespace {

bool blank(const CsvRow& row) { return row.cells.size() == 1 && row.cells[0].empty(); }

void check_width(const CsvRow& row, std::string_view file, std::size_t width) {
  if (row.cells.size() != width) throw InvalidArgument(cat(file, " line ", row.line, " has ", row.cells.size(), " cells, must have ", width));
}

/// Every row, blank ones too.
std::vector<CsvRow> rows_of(std::string_view text, std::string_view file) {
  std::vector<CsvRow> rows;
  std::vector<std::string> cells(1);
  bool quoted = false;
  int line = 1, first_line = 1;
  const auto end_row = [&] {
    rows.push_back({.line = first_line, .cells = std::move(cells)});
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

}  // namespace

CsvTable parse_csv(std::string_view text, std::string_view file) {
  CsvTable table;
  for (CsvRow& row : rows_of(text, file)) {
    if (blank(row) || row.cells[0].starts_with('#')) continue;
    if (table.header.empty()) {
      table.header = std::move(row.cells);
    } else {
      check_width(row, file, table.header.size());
      table.rows.push_back(std::move(row));
    }
  }
  if (table.header.empty()) throw InvalidArgument(cat(file, " is empty, must have a header line"));
  return table;
}

std::vector<CsvRow> parse_csv(std::string_view text, std::string_view file, std::span<const std::string_view> columns) {
  std::vector<CsvRow> rows = rows_of(text, file);
  if (rows.empty()) rows.push_back({.line = 1, .cells = {{}}});
  if (!blank(rows[0])) check_width(rows[0], file, columns.size());
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const std::string_view name = i < rows[0].cells.size() ? std::string_view(rows[0].cells[i]) : std::string_view();
    if (name != columns[i]) throw InvalidArgument(cat(file, " line 1 names column ", i + 1, " \"", name, "\", must be ", columns[i]));
  }
  rows.erase(std::remove_if(rows.begin(), rows.end(), blank), rows.end());
  for (const CsvRow& row : rows) check_width(row, file, columns.size());
  rows.erase(rows.begin());
  return rows;
}

}  // namespace kvatlas
