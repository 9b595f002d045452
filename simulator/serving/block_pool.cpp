#include "simulator/serving/block_pool.hpp"

#include "core/errors.hpp"

namespace kvatlas::sim {

bool BlockPool::take(std::int64_t blocks) {
  if (blocks > available()) return false;
  while (free_ < blocks) evict_oldest();
  free_ -= blocks;
  private_ += blocks;
  return true;
}

void BlockPool::give_back(std::int64_t blocks) {
  KV_ASSERT(blocks >= 0 && blocks <= private_, "blocks are given back once");
  private_ -= blocks;
  free_ += blocks;
}

void BlockPool::use(std::uint64_t id) {
  Node& node = nodes_.at(id);
  if (node.users++ == 0) {
    unlink(node);
    idle_ -= node.blocks;
    held_ += node.blocks;
  }
}

void BlockPool::publish(std::uint64_t id, std::int64_t blocks) {
  KV_ASSERT(id != 0 && blocks >= 0 && blocks <= private_, "a segment is made of private blocks");
  const auto [at, fresh] = nodes_.try_emplace(id, Node{.blocks = blocks, .users = 1});
  KV_ASSERT(fresh, "a segment is published once");
  private_ -= blocks;
  held_ += blocks;
}

void BlockPool::leave(std::uint64_t id) {
  Node& node = nodes_.at(id);
  KV_ASSERT(node.users > 0, "a segment is left by those who use it");
  if (--node.users == 0) {
    held_ -= node.blocks;
    idle_ += node.blocks;
    link(id, node);
  }
}

void BlockPool::link(std::uint64_t id, Node& node) {
  node.older = newest_;
  node.newer = 0;
  if (newest_ != 0) nodes_.at(newest_).newer = id;
  newest_ = id;
  if (oldest_ == 0) oldest_ = id;
}

void BlockPool::unlink(Node& node) {
  (node.older != 0 ? nodes_.at(node.older).newer : oldest_) = node.newer;
  (node.newer != 0 ? nodes_.at(node.newer).older : newest_) = node.older;
  node.older = node.newer = 0;
}

void BlockPool::evict_oldest() {
  KV_ASSERT(oldest_ != 0, "unused segments hold the blocks that are available and not free");
  const std::uint64_t id = oldest_;
  Node& node = nodes_.at(id);
  unlink(node);
  idle_ -= node.blocks;
  free_ += node.blocks;
  nodes_.erase(id);
}

bool BlockPool::consistent() const {
  std::int64_t held = 0, idle = 0;
  for (const auto& [id, node] : nodes_) (node.users > 0 ? held : idle) += node.blocks;
  return held == held_ && idle == idle_ && free_ >= 0 && private_ >= 0 && free_ + private_ + held_ + idle_ == total_;
}

}  // namespace kvatlas::sim
