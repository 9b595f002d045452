#include "reference/primitives/slot_positions.hpp"

#include <algorithm>

#include "core/parallel.hpp"

namespace kvatlas {

SlotPositions::SlotPositions(const CacheShape& shape) : dtype_(shape.dtype) {
  for (const LayerClass& c : shape.classes) {
    for (const int layer : c.layers) {
      class_of_.resize(std::max(class_of_.size(), static_cast<std::size_t>(layer) + 1), 0);
      class_of_[static_cast<std::size_t>(layer)] = of_class_.size();
    }
    of_class_.push_back({RopeTable(c.rope), {}});
  }
}

void SlotPositions::reach(int layer, std::int64_t rows) {
  Turns& turns = of_class_[class_of_[static_cast<std::size_t>(layer)]];
  if (turns.table.spec().rotary_dim == 0) return;
  for (auto s = static_cast<std::int64_t>(turns.by_slot.size()); s < rows; ++s) turns.by_slot.push_back(turns.table.rotation(s));
}

void SlotPositions::turn(int layer, std::span<float> row, std::int64_t slot) const {
  const Turns& turns = of_class_[class_of_[static_cast<std::size_t>(layer)]];
  if (turns.table.spec().rotary_dim == 0) return;
  turns.table.rotate(row, turns.by_slot[static_cast<std::size_t>(slot)]);
  round_all(dtype_, row);
}

Array SlotPositions::keys(int layer, const TokenRows& rows, int head) const {
  Array k = rows.keys(head);
  for (std::int64_t s = 0; s < rows.count(head); ++s) turn(layer, k.view().row(s), s);
  return k;
}

Array SlotPositions::queries(int layer, Array before_rope, std::int64_t rows) const {
  const std::int64_t n = before_rope.dims()[1];
  for (std::int64_t h = 0; h < before_rope.dims()[0]; ++h)
    for (std::int64_t i = 0; i < n; ++i) turn(layer, before_rope.view().row(h, i), rows - n + i);
  return before_rope;
}

void SlotPositions::attend(const LayerClass& c, int layer, const TokenRows& rows, const PreparedStep& p, const StepInput& in, View<float> out, const WeightSink& weights) {
  reach(layer, rows.count(0));
  const Array q = queries(layer, p.q_pre, rows.count(0));
  parallel_for(c.kv_heads, [&](std::int64_t h) {
    const int head = static_cast<int>(h);
    const Array k = keys(layer, rows, head), v = rows.values(head);
    attend_new(c, head, q.view(), View<const float>(k.view()), v.view(), in.mask, in.sinks, out, weights);
  });
}

}  // namespace kvatlas
