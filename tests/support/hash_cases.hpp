// The fixed situations whose bits are committed in tests/hashes/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvatlas::test {

struct HashRow {
  std::string method, name;
  std::uint64_t output = 0, buffers = 0;
  std::int64_t bytes = 0;  // counted from live buffers
};

/// Every method: caches at defaults and on drawn situations, and the faces beside a cache.
std::vector<HashRow> all_hash_rows();

}  // namespace kvatlas::test
