// Prints or checks digests of outputs, buffers and counted bytes of every method on fixed situations. The committed table
// was made once by all four builds (g++ and clang++, Debug and Release); any build must repeat it.
//   kvatlas_hashes --write FILE | --check FILE | --add METHOD FILE
#include <cstdio>
#include <cstring>
#include <exception>
#include <fmt/core.h>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/errors.hpp"
#include "tests/support/hash_cases.hpp"

using namespace kvatlas;

namespace {

std::string key_of(const test::HashRow& r) { return cat(r.method, ",", r.name); }
std::string value_of(const test::HashRow& r) { return fmt::format("{:016x},{:016x},{}", r.output, r.buffers, r.bytes); }

using Table = std::vector<std::pair<std::string, std::string>>;  // method and case, digests

Table read(const char* file) {
  std::ifstream in(file);
  if (!in) throw IoError(cat(file, ": cannot be read"));
  Table rows;
  std::string line;
  std::getline(in, line);
  while (std::getline(in, line)) {
    const std::size_t second = line.find(',', line.find(',') + 1);
    rows.emplace_back(line.substr(0, second), line.substr(second + 1));
  }
  return rows;
}

void write(const char* file, const Table& rows) {
  std::string text = "method,case,output_bits,buffer_bits,counted_bytes\n";
  for (const auto& [key, value] : rows) text += cat(key, ",", value, "\n");
  std::ofstream out(file, std::ios::binary);
  out << text;
  if (!out.flush()) throw IoError(cat(file, ": cannot be written"));
}

int check(const std::vector<test::HashRow>& rows, const char* file) {
  const Table recorded = read(file);
  std::map<std::string, std::string> expected(recorded.begin(), recorded.end());
  int passed = 0, failed = 0;
  for (const auto& r : rows) {
    const auto found = expected.find(key_of(r));
    if (found != expected.end() && found->second == value_of(r)) {
      ++passed;
    } else {
      ++failed;
      fmt::print("{}: {} here, {} in the table\n", key_of(r), value_of(r), found == expected.end() ? "absent" : found->second);
    }
    expected.erase(key_of(r));
  }
  for (const auto& [key, value] : expected) {
    ++failed;
    fmt::print("{}: in the table, not computed here\n", key);
  }
  fmt::print("hashes: {} passed, {} failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

/// Appends the rows of one new method; what stands there already is never changed.
int add(const std::vector<test::HashRow>& rows, const std::string& method, const char* file) {
  Table table = read(file);
  const std::map<std::string, std::string> recorded(table.begin(), table.end());
  int known = 0, added = 0;
  for (const auto& r : rows) {
    if (r.method != method) continue;
    ++known;
    const auto found = recorded.find(key_of(r));
    if (found == recorded.end()) {
      table.emplace_back(key_of(r), value_of(r));
      ++added;
    } else if (found->second != value_of(r)) {
      throw InvalidArgument(cat(key_of(r), ": its bits changed; remove its rows from ", file, " first if that is meant"));
    }
  }
  if (known == 0) throw InvalidArgument(cat(method, ": no such method"));
  if (added > 0) write(file, table);
  fmt::print("hashes: {} rows of {} added\n", added, method);
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string_view verb = argc > 1 ? argv[1] : "";
  if (!((verb == "--write" || verb == "--check") && argc == 3) && !(verb == "--add" && argc == 4)) {
    std::fputs("usage: kvatlas_hashes --write FILE | --check FILE | --add METHOD FILE\n", stderr);
    return 2;
  }
  const std::vector<test::HashRow> rows = test::all_hash_rows();
  if (verb == "--check") return check(rows, argv[2]);
  if (verb == "--add") return add(rows, argv[2], argv[3]);
  Table out;
  for (const auto& r : rows) out.emplace_back(key_of(r), value_of(r));
  write(argv[2], out);
  return 0;
} catch (const std::exception& e) {
  fmt::print(stderr, "{}\n", e.what());
  return 1;
}
