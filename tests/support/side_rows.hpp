// One side of a layer fed by hand: what a method stores of given rows and what it reads back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "reference/cache.hpp"

namespace kvatlas::test {

struct StoredSide {
  std::vector<NamedBuffer> buffers;
  std::vector<float> decoded;  // of kv head 0, row after row

  std::vector<int> bytes(std::string_view component) const;    // all buffers of a component, in order
  std::vector<float> fp16(std::string_view component) const;   // the same as fp16 values
  std::vector<float> f32(std::string_view component) const;
};

/// Rows of one kv head, row after row of `dim` values, through the store that `recipe` opens for a side; the prompt then ends.
StoredSide store_rows(const std::string& recipe, Side side, int dim, const std::vector<float>& rows, Dtype dtype = Dtype::f32);

/// Bits per original element that the formula gives for `tokens` tokens of one layer of 2 kv heads and this head_dim.
double bits_per_value(const std::string& recipe, int head_dim, std::int64_t tokens, Dtype dtype = Dtype::bf16);

/// The sentence with which a method refuses a shape of one layer, "" if it does not.
std::string refusal(const std::string& recipe, int head_dim, RowKind kind = RowKind::kv, Tokens window = Tokens(0));

}  // namespace kvatlas::test
