#include "gpu/simt/races.hpp"

#include <algorithm>

namespace kvatlas::gpu {

Shadow::Shadow(std::int64_t bytes, Lifetime lifetime)
    : lifetime_(lifetime), pages_(static_cast<std::size_t>((bytes / 4 + kPageWords) / kPageWords)) {}

void Shadow::clear() {
  for (auto& page : pages_) page.reset();
  split_.clear();
}

Shadow::Cell& Shadow::cell(std::int64_t word) {
  auto& page = pages_[static_cast<std::size_t>(word / kPageWords)];
  if (!page) page = std::make_unique<std::array<Cell, kPageWords>>();
  return (*page)[static_cast<std::size_t>(word % kPageWords)];
}

bool Shadow::ordered(const Who& before, const Who& now, const Knowledge& knows) const {
  if (before.block != now.block) return before.block < 0 || lifetime_ == Lifetime::block;
  if (before.epoch != now.epoch) return true;
  if (before.warp != now.warp) return false;
  return before.lane == now.lane || before.stamp < knows[before.lane];
}

bool Shadow::conflicts(const Set& set, const Who& now, const Knowledge& knows, Who& other) const {
  if (set.last.block < 0) return false;
  if (lifetime_ == Lifetime::launch && set.elsewhere.block >= 0 && set.elsewhere.block != now.block) {
    other = set.elsewhere;
    return true;
  }
  if (set.last.block != now.block) {
    other = set.last;
    return lifetime_ == Lifetime::launch;
  }
  if (set.last.epoch != now.epoch) return false;
  if (set.several_warps || set.last.warp != now.warp) {
    other = set.last;
    return true;
  }
  for (std::uint32_t rest = set.lanes; rest != 0; rest &= rest - 1) {
    Who one = set.last;
    one.lane = static_cast<std::uint8_t>(__builtin_ctz(rest));
    if (!ordered(one, now, knows)) {
      other = one;
      return true;
    }
  }
  for (const Who& one : set.earlier_stamps)
    if (!ordered(one, now, knows)) {
      other = one;
      return true;
    }
  return false;
}

void Shadow::add(Set& set, const Who& now, const Knowledge& knows) const {
  const std::uint32_t bit = 1U << now.lane;
  const auto restart = [&] {
    set.last = now;
    set.lanes = bit;
    set.several_warps = false;
    set.earlier_stamps.clear();
  };
  if (set.last.block != now.block) {
    if (set.last.block >= 0) set.elsewhere = set.last;
    return restart();
  }
  if (set.last.epoch != now.epoch) return restart();
  if (set.several_warps) return;
  if (set.last.warp != now.warp) {
    set.several_warps = true;
    return;
  }
  if (set.last.stamp == now.stamp) {
    set.lanes |= bit;
    return;
  }
  for (std::uint32_t rest = set.lanes; rest != 0; rest &= rest - 1) {
    Who one = set.last;
    one.lane = static_cast<std::uint8_t>(__builtin_ctz(rest));
    if (!ordered(one, now, knows)) set.earlier_stamps.push_back(one);
  }
  std::erase_if(set.earlier_stamps, [&](const Who& one) { return ordered(one, now, knows); });
  set.last = now;
  set.lanes = bit;
}

bool Shadow::touch_cell(Cell& c, Touch touch, const Who& who, const Knowledge& knows, Conflict& conflict) const {
  bool found = false;
  if (c.writer.block >= 0 && !ordered(c.writer, who, knows)) {
    conflict = {c.writer, Touch::write};
    found = true;
  }
  if (!found && touch != Touch::read && conflicts(c.reads, who, knows, conflict.other)) {
    conflict.other_touch = Touch::read;
    found = true;
  }
  if (!found && touch != Touch::atomic && conflicts(c.atomics, who, knows, conflict.other)) {
    conflict.other_touch = Touch::atomic;
    found = true;
  }
  switch (touch) {
    case Touch::read: add(c.reads, who, knows); break;
    case Touch::atomic: add(c.atomics, who, knows); break;
    case Touch::write: c.writer = who; break;
  }
  return found;
}

bool Shadow::touch(std::int64_t offset, int bytes, Touch touch, const Who& who, const Knowledge& knows, Conflict& conflict) {
  bool found = false;
  for (std::int64_t at = offset; at < offset + bytes;) {
    const std::int64_t word = at / 4, end = std::min(word * 4 + 4, offset + bytes);
    Cell& c = cell(word);
    if (c.split < 0 && end - at == 4) {
      found = touch_cell(c, touch, who, knows, conflict) || found;
    } else {
      if (c.split < 0) {
        c.split = static_cast<std::int32_t>(split_.size());
        split_.push_back({c, c, c, c});
      }
      for (std::int64_t b = at; b < end; ++b)
        found = touch_cell(split_[static_cast<std::size_t>(c.split)][static_cast<std::size_t>(b % 4)], touch, who, knows, conflict) || found;
    }
    at = end;
  }
  return found;
}

}  // namespace kvatlas::gpu
