// Tables for people: aligned columns that fit into 100 characters.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "answers/spell.hpp"

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

using answers::spell_bytes;
using answers::spell_count;
using answers::spell_number;
using answers::spell_si;

}  // namespace kvatlas::cli
