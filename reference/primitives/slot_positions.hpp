// Keys that are kept before RoPE and turned by their slot whenever they are read: a query sits behind all that is held.
#pragma once

#include <span>
#include <vector>

#include "core/rope.hpp"
#include "reference/primitives/step.hpp"
#include "reference/primitives/token_rows.hpp"

namespace kvatlas {

class SlotPositions {
 public:
  explicit SlotPositions(const CacheShape& shape);

  /// Makes the rotations of slots [0, rows) of a layer; before threads turn rows. They follow from the shape and are no state.
  void reach(int layer, std::int64_t rows);
  /// A row of the layer turned by its slot and rounded to the dtype, as `full` does with a position.
  void turn(int layer, std::span<float> row, std::int64_t slot) const;
  /// Keys of one head as attention sees them.
  Array keys(int layer, const TokenRows& rows, int head) const;
  /// Queries as attention sees them: the newest `n` slots of `rows`.
  Array queries(int layer, Array before_rope, std::int64_t rows) const;

  /// Attention of the new tokens over rows whose keys are kept before RoPE; `c` owns the rows.
  void attend(const LayerClass& c, int layer, const TokenRows& rows, const PreparedStep& p, const StepInput& in, View<float> out, const WeightSink& weights = {});

 private:
  struct Turns {
    RopeTable table;
    std::vector<Rotation> by_slot;
  };
  std::vector<Turns> of_class_;
  std::vector<std::size_t> class_of_;  // by layer
  Dtype dtype_;
};

}  // namespace kvatlas
