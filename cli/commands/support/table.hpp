// Tables for people: aligned columns that fit into 100 characters, and figures with readable units.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

namespace kvatlas::cli {

inline constexpr std::size_t kLineWidth = 100;

enum class Align : bool { left, right };

struct Column {
  std::string title;
  Align align = Align::left;
};

/// Cells are text, at least two a row; a last left-aligned column is wrapped into what is left of the line.
class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  /// A line of its own between rows, as wide as it likes.
  void heading(std::string text) { rows_.push_back({std::move(text)}); }
  bool empty() const { return rows_.empty(); }
  void print(std::ostream& out, std::size_t indent = 0) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// `text` in lines of at most `width` characters, broken at spaces; a longer word stays whole.
std::vector<std::string> wrap(const std::string& text, std::size_t width);

/// "4.00 GiB", "1,536 B".
std::string spell_bytes(double bytes);
/// 1234567 -> "1,234,567".
std::string spell_count(double n);
/// Four significant digits: "0.01234", "12.34", "1234"; "-" when absent.
std::string spell_number(std::optional<double> value);
/// "3.35 TB/s", "989 TFLOP/s", "1.98 GHz": a decimal prefix before the unit.
std::string spell_si(double value, const char* unit);

}  // namespace kvatlas::cli
