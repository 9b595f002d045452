// What the compiler made of a kernel, from the committed table gpu/launch/static.csv: no compiler is needed to read it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::gpu {

struct StaticFacts {
  std::string compiler;      // "nvcc 13.0.88"
  std::string architecture;  // "sm_90a"
  int registers = 0;         // of a thread
  std::int64_t spill_bytes = 0;  // stores and loads
};

/// The table as text.
std::string_view static_table();

/// Rows of a kernel's shape, an architecture each; empty for what the table lacks.
/// throws IoError for a table without the columns that this reads
std::vector<StaticFacts> static_facts(std::string_view kernel, int shape, std::string_view table = static_table());

}  // namespace kvatlas::gpu
