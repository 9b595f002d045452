// Prints or checks digests of outputs, buffers and counted bytes of every method on fixed situations. The committed table
// was made once by all four builds (g++ and clang++, Debug and Release); any build must repeat it.
//   kvatlas_hashes --write FILE | --check FILE
#include <cstdio>
#include <cstring>
#include <exception>
#include <fmt/core.h>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "core/errors.hpp"
#include "tests/support/hash_cases.hpp"

using namespace kvatlas;

int main(int argc, char** argv) try {
  if (argc != 3 || (std::strcmp(argv[1], "--write") != 0 && std::strcmp(argv[1], "--check") != 0)) {
    std::fputs("usage: kvatlas_hashes --write FILE | --check FILE\n", stderr);
    return 2;
  }
  const std::vector<test::HashRow> rows = test::all_hash_rows();
  if (std::strcmp(argv[1], "--write") == 0) {
    std::ofstream out(argv[2]);
    out << "method,case,output_bits,buffer_bits,counted_bytes\n";
    for (const auto& r : rows) out << fmt::format("{},{},{:016x},{:016x},{}\n", r.method, r.name, r.output, r.buffers, r.bytes);
    return out.good() ? 0 : 1;
  }
  std::ifstream in(argv[2]);
  if (!in) throw IoError(cat(argv[2], ": cannot be read"));
  std::map<std::string, std::string> expected;
  std::string line;
  std::getline(in, line);
  while (std::getline(in, line)) {
    const std::size_t second = line.find(',', line.find(',') + 1);
    expected[line.substr(0, second)] = line.substr(second + 1);
  }
  int passed = 0, failed = 0;
  for (const auto& r : rows) {
    const std::string key = cat(r.method, ",", r.name);
    const std::string value = fmt::format("{:016x},{:016x},{}", r.output, r.buffers, r.bytes);
    const auto found = expected.find(key);
    if (found != expected.end() && found->second == value) {
      ++passed;
    } else {
      ++failed;
      fmt::print("{}: {} here, {} in the table\n", key, value, found == expected.end() ? "absent" : found->second);
    }
    expected.erase(key);
  }
  for (const auto& [key, value] : expected) {
    ++failed;
    fmt::print("{}: in the table, not computed here\n", key);
  }
  fmt::print("hashes: {} passed, {} failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
} catch (const std::exception& e) {
  fmt::print(stderr, "{}\n", e.what());
  return 1;
}
