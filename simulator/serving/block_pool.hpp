// The blocks of a replica's cache and the prefixes that stay in them after their requests have gone.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace kvatlas::sim {

/// Every block is free, private to a running request, or part of a prefix segment; a segment that no request uses is kept
/// until its blocks are needed, the least recently used first.
class BlockPool {
 public:
  explicit BlockPool(std::int64_t blocks) : total_(blocks), free_(blocks) {}

  std::int64_t total() const { return total_; }
  /// Blocks that a request may have now: free ones and those of unused segments.
  std::int64_t available() const { return free_ + idle_; }
  std::int64_t in_use() const { return total_ - free_ - idle_; }
  std::int64_t private_blocks() const { return private_; }
  std::int64_t segment_blocks() const { return held_ + idle_; }

  /// Takes private blocks; false, and nothing changes, when there are not so many.
  bool take(std::int64_t blocks);
  void give_back(std::int64_t blocks);

  bool holds(std::uint64_t id) const { return nodes_.contains(id); }
  /// A request begins to use a segment that is held.
  void use(std::uint64_t id);
  /// Makes `blocks` private blocks a segment that the request goes on using. The id must not be held.
  void publish(std::uint64_t id, std::int64_t blocks);
  /// A request stops using a segment.
  void leave(std::uint64_t id);
  std::int64_t blocks_of(std::uint64_t id) const { return nodes_.at(id).blocks; }

  /// Whether the counts agree with the segments; for tests.
  bool consistent() const;

 private:
  struct Node {
    std::int64_t blocks = 0, users = 0;
    std::uint64_t older = 0, newer = 0;  // neighbours in the order of last use while nobody uses it; 0 = none
  };
  void link(std::uint64_t id, Node& node);
  void unlink(Node& node);
  void evict_oldest();

  std::int64_t total_, free_, private_ = 0, held_ = 0, idle_ = 0;
  std::unordered_map<std::uint64_t, Node> nodes_;
  std::uint64_t oldest_ = 0, newest_ = 0;
};

}  // namespace kvatlas::sim
