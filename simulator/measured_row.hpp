// One row of a table of published timings, read by column name; every error names file, line and column.
#pragma once

#include <charconv>
#include <cmath>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/errors.hpp"
#include "core/io/csv.hpp"
#include "simulator/gpu.hpp"

namespace kvatlas::sim {

/// The row that is being read, by column name.
class MeasuredRow {
 public:
  MeasuredRow(const std::vector<std::string>& header, std::string_view file) : file_(file) {
    for (std::size_t i = 0; i < header.size(); ++i) at_[header[i]] = i;
  }
  bool has(std::string_view column) const { return at_.contains(column); }
  void need(std::initializer_list<const char*> columns) const {
    for (const char* column : columns)
      if (!has(column)) throw InvalidArgument(cat(file_, ": column ", column, " is missing"));
  }
  void read(const CsvRow& row) { row_ = &row; }
  const std::string& text(std::string_view column) const { return row_->cells[at_.find(column)->second]; }
  double number(std::string_view column) const {
    const std::string& cell = text(column);
    double value = 0;
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    if (error != std::errc{} || end != cell.data() + cell.size() || !(value >= 0) || !std::isfinite(value)) fail(column, "a number");
    return value;
  }
  double positive(std::string_view column) const {
    const double value = number(column);
    if (!(value > 0)) fail(column, "positive");
    return value;
  }
  /// A whole number, from 1 unless told; files write 128 or 128.0.
  int count(std::string_view column, int least = 1) const {
    constexpr int kMost = 1 << 26;
    const double value = number(column);
    if (value != std::floor(value) || value < least || value > kMost) fail(column, cat("a whole number from ", least, " to ", kMost));
    return static_cast<int>(value);
  }
  /// Whether a number format is fp8, which beside bf16 is all that is known of a cache or its queries.
  bool fp8(std::string_view column) const {
    const std::string& name = text(column);
    if (name != "fp8" && name != "bf16") fail(column, "bf16 or fp8");
    return name == "fp8";
  }
  const Gpu& gpu() const try {
    return find_gpu(text("gpu"));
  } catch (const InvalidArgument& e) {
    throw InvalidArgument(cat(file_, " line ", row_->line, ": gpu: ", e.what()));
  }
  [[noreturn]] void fail(std::string_view column, std::string_view allowed) const {
    throw InvalidArgument(cat(file_, " line ", row_->line, ": ", column, " is \"", text(column), "\", must be ", allowed));
  }

 private:
  std::string file_;
  std::map<std::string, std::size_t, std::less<>> at_;
  const CsvRow* row_ = nullptr;
};

}  // namespace kvatlas::sim
