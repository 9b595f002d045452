// TreeKV's rule: one after the other, neighbours among the held entries are compared and the weaker one leaves, so that what is old grows
// sparse as the leaves of a tree that is read from its right edge.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvatlas::methods::treekv_parts {

struct Cycle {
  std::int64_t capacity = 1;
  std::int64_t at = 1;  // the older of the two entries that are compared next, counted from 1

  /// Of capacity + 1 entries the one that leaves, counted from 0; of equal ones the older.
  template <class Average>
  std::int64_t leaves(const Average& average) const {
    return average(at - 1) > average(at) ? at : at - 1;
  }
  void advance() { at = at % capacity + 1; }
};

/// Entries that are left when all of them have come in order and each above `capacity` has pushed one out.
inline std::vector<std::int64_t> survivors(std::span<const double> scores, std::int64_t capacity) {
  std::vector<std::int64_t> held;
  if (capacity <= 0) return held;
  Cycle cycle{.capacity = capacity};
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(scores.size()); ++i) {
    held.push_back(i);
    if (static_cast<std::int64_t>(held.size()) <= capacity) continue;
    held.erase(held.begin() + cycle.leaves([&](std::int64_t e) { return scores[static_cast<std::size_t>(held[static_cast<std::size_t>(e)])]; }));
    cycle.advance();
  }
  return held;
}

}  // namespace kvatlas::methods::treekv_parts
