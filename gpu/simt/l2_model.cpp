#include "gpu/simt/l2_model.hpp"

#include "core/errors.hpp"

namespace kvatlas::gpu {

L2Model::L2Model(std::int64_t capacity_bytes) : capacity_lines_(static_cast<std::size_t>(capacity_bytes / 128)) {
  if (capacity_bytes < 128) throw InvalidArgument(cat("L2 capacity is ", capacity_bytes, " bytes, must be at least one line of 128"));
  counts_.capacity_bytes = capacity_bytes;
}

void L2Model::access(std::uint64_t sector, bool write) {
  const std::uint64_t number = sector / 4;
  const std::uint32_t bit = 1U << (sector % 4);
  if (const auto found = lines_.find(number); found != lines_.end()) {
    order_.splice(order_.begin(), order_, found->second);
  } else {
    if (order_.size() == capacity_lines_) {
      counts_.written_back += __builtin_popcount(order_.back().dirty);
      lines_.erase(order_.back().number);
      order_.pop_back();
    }
    order_.push_front({.number = number});
    lines_.emplace(number, order_.begin());
  }
  Line& line = order_.front();
  if ((line.valid & bit) != 0) {
    counts_.hits += 1;
  } else if (!write) {
    counts_.read_misses += 1;
  }
  line.valid |= bit;
  if (write) line.dirty |= bit;
}

L2Counts L2Model::counts() const {
  L2Counts now = counts_;
  for (const Line& line : order_) now.written_back += __builtin_popcount(line.dirty);
  return now;
}

}  // namespace kvatlas::gpu
