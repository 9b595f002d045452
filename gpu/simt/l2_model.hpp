// A fully associative L2 cache with least-recently-used lines: where the DRAM traffic of a launch lies between its two bounds
// (distinct sectors, if everything is reused; summed sectors, if nothing is).
#pragma once

#include <cstdint>
#include <list>
#include <unordered_map>

namespace kvatlas::gpu {

struct L2Counts {
  std::int64_t capacity_bytes = 0;
  std::int64_t hits = 0;           // sectors
  std::int64_t read_misses = 0;    // sectors fetched from DRAM
  std::int64_t written_back = 0;   // sectors evicted after a write, the rest at the end
  friend bool operator==(const L2Counts&, const L2Counts&) = default;
};

/// Lines of 128 bytes, filled by 32-byte sectors. A written sector needs no fetch; partial writes are not modelled.
class L2Model {
 public:
  explicit L2Model(std::int64_t capacity_bytes);
  void access(std::uint64_t sector, bool write);
  /// Counts as if the cache were written back now.
  L2Counts counts() const;

 private:
  struct Line {
    std::uint64_t number;
    std::uint32_t valid = 0, dirty = 0;  // one bit a sector
  };
  std::size_t capacity_lines_;
  std::list<Line> order_;  // newest first
  std::unordered_map<std::uint64_t, std::list<Line>::iterator> lines_;
  L2Counts counts_;
};

}  // namespace kvatlas::gpu
