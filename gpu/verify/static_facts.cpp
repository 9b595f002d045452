#include "gpu/verify/static_facts.hpp"

#include <algorithm>
#include <charconv>

#include "core/errors.hpp"

namespace kvatlas::gpu {

namespace {

std::vector<std::string_view> fields_of(std::string_view line) {
  std::vector<std::string_view> out;
  while (true) {
    const std::size_t comma = line.find(',');
    out.push_back(line.substr(0, comma));
    if (comma == std::string_view::npos) return out;
    line.remove_prefix(comma + 1);
  }
}

std::int64_t number_of(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) throw IoError(cat("static.csv: \"", text, "\" is no whole number"));
  return value;
}

}  // namespace

std::vector<StaticFacts> static_facts(std::string_view kernel, int shape, std::string_view table) {
  const auto take_line = [&table] {
    const std::size_t end = table.find('\n');
    const std::string_view line = table.substr(0, end);
    table.remove_prefix(end == std::string_view::npos ? table.size() : end + 1);
    return line;
  };
  const auto names = fields_of(take_line());
  const auto column = [&names](std::string_view name) {
    const auto it = std::ranges::find(names, name);
    if (it == names.end()) throw IoError(cat("static.csv: has no column ", name));
    return static_cast<std::size_t>(it - names.begin());
  };
  const std::size_t compiler = column("nvcc"), kernels = column("kernel"), shapes = column("shape"), architecture = column("architecture"), registers = column("registers"),
                    stores = column("spill_stores"), loads = column("spill_loads");
  std::vector<StaticFacts> out;
  while (!table.empty()) {
    const auto row = fields_of(take_line());
    if (row.size() != names.size()) throw IoError(cat("static.csv: a row has ", row.size(), " fields, must have ", names.size()));
    if (row[kernels] != kernel || number_of(row[shapes]) != shape) continue;
    out.push_back({.compiler = cat("nvcc ", row[compiler]), .architecture = std::string(row[architecture]), .registers = static_cast<int>(number_of(row[registers])),
                   .spill_bytes = number_of(row[stores]) + number_of(row[loads])});
  }
  return out;
}

}  // namespace kvatlas::gpu
