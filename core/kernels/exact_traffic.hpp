// Exact traffic of a launch: requests, sectors and bytes of contiguous segments that warps move, as integers. The formulas of
// single kernels (quantize_traffic.hpp, decode_traffic.hpp) enumerate segments; the executor counts accesses; both must agree.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "core/units.hpp"

namespace kvatlas::kernels {

struct ExactCounts {
  std::int64_t requests = 0;
  std::int64_t bytes = 0;             // asked for by lanes
  std::int64_t sectors = 0;           // summed over requests
  std::int64_t distinct_sectors = 0;  // over the launch
  friend bool operator==(const ExactCounts&, const ExactCounts&) = default;
};

/// Bytes of one lane's access to a segment: the widest of 16, 4 and 1 that divides its place and its length.
constexpr std::int64_t lane_width(std::int64_t offset, std::int64_t bytes) {
  return (offset | bytes) % 16 == 0 ? 16 : (offset | bytes) % 4 == 0 ? 4 : 1;
}

/// Sums over segments of one direction (reads or writes). A place is a buffer's number and an offset into it; buffers start
/// at multiples of 256 bytes and share no sector.
class SegmentSum {
 public:
  /// A segment whose bytes neighbouring lanes move in accesses of `width` bytes, 32 lanes a request.
  void segment(int buffer, std::int64_t offset, std::int64_t bytes, std::int64_t width) {
    if (bytes <= 0) return;
    const std::int64_t step = 32 * width;
    counts_.bytes += bytes;
    counts_.requests += ceil_div(bytes, step);
    for (std::int64_t at = 0; at < bytes; at += step) counts_.sectors += sectors(offset + at, std::min(step, bytes - at));
    note(buffer, offset, bytes);
  }
  /// `requests` requests in which every lane asks for the same `bytes` bytes (at most a sector), or one lane does.
  void same(int buffer, std::int64_t offset, std::int64_t bytes, std::int64_t requests, std::int64_t lanes = 32) {
    counts_.requests += requests;
    counts_.bytes += requests * lanes * bytes;
    counts_.sectors += requests * sectors(offset, bytes);
    note(buffer, offset, bytes);
  }
  /// One request for `count` segments of `bytes` bytes, `stride` bytes apart.
  void joint(int buffer, std::int64_t offset, std::int64_t bytes, std::int64_t stride, std::int64_t count) {
    counts_.requests += count > 0 ? 1 : 0;
    for (std::int64_t i = 0; i < count; ++i) {
      counts_.bytes += bytes;
      counts_.sectors += sectors(offset + i * stride, bytes);
      note(buffer, offset + i * stride, bytes);
    }
  }
  /// One request in which `groups` groups of lanes ask for the same segment.
  void same_for_groups(int buffer, std::int64_t offset, std::int64_t bytes, std::int64_t groups) {
    counts_.requests += 1;
    counts_.bytes += groups * bytes;
    counts_.sectors += sectors(offset, bytes);
    note(buffer, offset, bytes);
  }
  /// One request for segments of `bytes` bytes at ascending places; neighbours may share a sector.
  void gathered(int buffer, std::span<const std::int64_t> offsets, std::int64_t bytes) {
    counts_.requests += offsets.empty() ? 0 : 1;
    std::int64_t end = -1;  // of the sectors that are counted
    for (const std::int64_t offset : offsets) {
      const std::int64_t last = (offset + bytes - 1) / 32 + 1;
      counts_.bytes += bytes;
      counts_.sectors += last - std::max(end, offset / 32);
      end = last;
      note(buffer, offset, bytes);
    }
  }
  ExactCounts total() {
    std::ranges::sort(touched_);
    std::int64_t distinct = 0, end = -1;
    for (const auto& [first, last] : touched_) {
      distinct += std::max<std::int64_t>(0, last - std::max(first, end));
      end = std::max(end, last);
    }
    ExactCounts out = counts_;
    out.distinct_sectors = distinct;
    return out;
  }

 private:
  static std::int64_t sectors(std::int64_t offset, std::int64_t bytes) { return (offset + bytes - 1) / 32 - offset / 32 + 1; }
  void note(int buffer, std::int64_t offset, std::int64_t bytes) {
    const std::int64_t base = std::int64_t{buffer} << 44;
    const std::pair<std::int64_t, std::int64_t> range{base + offset / 32, base + (offset + bytes - 1) / 32 + 1};
    if (!touched_.empty() && touched_.back().second == range.first) touched_.back().second = range.second;
    else touched_.push_back(range);
  }
  ExactCounts counts_;
  std::vector<std::pair<std::int64_t, std::int64_t>> touched_;  // sectors, half open
};

struct ExactTraffic {
  ExactCounts reads, writes;
  friend bool operator==(const ExactTraffic&, const ExactTraffic&) = default;
};

}  // namespace kvatlas::kernels
