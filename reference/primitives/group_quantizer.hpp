// Uniform codes with a scale and a minimum for each group of values: the core of KIVI and of its many relatives.
//
// Order of operations of one group, each result rounded to `work` (f32: left as it is):
//   low = smallest, high = largest value; scale = (high - low) / (2^bits - 1), rounded to `meta`, as is low
//   code = nearest even of clamp((x - low) / scale, 0, 2^bits - 1)
//   a scale of 0 or infinity: scale 0, all codes 0, so that the group decodes to its minimum
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/code_format.hpp"
#include "core/view.hpp"

namespace kvatlas {

struct GroupQuantizer {
  int bits = 4;
  int group_size = 32;
  GroupAxis axis = GroupAxis::channels;
  Dtype work = Dtype::f16;  // type of every step of the encoder; inputs are rounded to it, saturating at its largest value
  Dtype meta = Dtype::f16;  // stored type of scale and minimum

  struct Meta {
    float scale = 0, minimum = 0;
  };
  /// Codes of one group; x and codes have group_size elements.
  Meta encode(std::span<const float> x, std::span<std::uint8_t> codes) const;
  /// One fused multiply-add in float32, as a kernel does it.
  static float decode(std::uint32_t code, Meta m);

  CodeFormat format() const;
  /// Rows that are coded together: a group along tokens needs group_size of them.
  std::int64_t block_rows() const { return axis == GroupAxis::tokens ? group_size : 1; }
};

/// The coded rows of one kv head. Groups follow one another, each a little-endian bit stream of its codes:
///   axis tokens    block of group_size rows, in it channel by channel: 32-bit words run along the tokens of a channel
///   axis channels  row by row, in it group by group: words run along the channels of a token
class GroupRows {
 public:
  GroupRows(const GroupQuantizer& quantizer, int dim) : q_(quantizer), dim_(dim) {}

  std::int64_t rows() const { return rows_; }
  /// Codes [n, dim] rows; n is a multiple of block_rows().
  void append(View<const float> rows);
  /// Decodes rows [first, first + out.dim(0)).
  void read(std::int64_t first, View<float> out) const;

  std::span<const std::byte> codes() const { return codes_; }
  std::span<const std::byte> scales() const { return scales_; }
  std::span<const std::byte> minima() const { return minima_; }
  /// Replaces the content. throws InvalidArgument, which names the head, when sizes are not those of whole blocks
  void load(std::span<const std::byte> codes, std::span<const std::byte> scales, std::span<const std::byte> minima, int head);

 private:
  std::int64_t group_bytes() const { return std::int64_t{q_.group_size} * q_.bits / 8; }
  GroupQuantizer::Meta meta_of(std::int64_t group) const;

  GroupQuantizer q_;
  int dim_;
  std::int64_t rows_ = 0;
  std::vector<std::byte> codes_, scales_, minima_;
};

}  // namespace kvatlas
