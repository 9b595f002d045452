// Comma-separated tables as RFC 4180 writes them: quoted cells, doubled quotes, line ends inside quotes.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas {

struct CsvRow {
  int line = 0;  // where it begins, the header is line 1
  std::vector<std::string> cells;
};

struct CsvTable {
  std::vector<std::string> header;
  std::vector<CsvRow> rows;
};

/// Any table: blank rows and rows that begin with # are left out, the first of the others is the header, every row has as many
/// cells as it. throws InvalidArgument that names file and line, also for a table without a header
CsvTable parse_csv(std::string_view text, std::string_view file);

/// The rows below the header, blank lines left out. The header must name `columns`, every row must have as many cells; `file`
/// is what errors call the table.
/// throws InvalidArgument that names file and line
std::vector<CsvRow> parse_csv(std::string_view text, std::string_view file, std::span<const std::string_view> columns);

}  // namespace kvatlas
