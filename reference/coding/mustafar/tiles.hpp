// Mustafar's pruned rows: bitmaps of 64-element tiles, the values that stay, and running offsets.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "reference/primitives/row_coder.hpp"

namespace kvatlas::mustafar_tiles {

inline constexpr int kTile = 64;       // elements of a tile: tokens of a key channel, channels of a value row
inline constexpr int kListUnit = 8;    // a tile's values are filled with zeros to a multiple of this

/// How many values of a row go: k = max(1, int(sparsity * dim)); the k-th smallest magnitude is the smallest that stays.
int pruned_rank(double sparsity, int dim);
/// Sets to +0 what is smaller in magnitude than the k-th smallest of the row. Equal magnitudes stay together.
void prune(std::span<float> row, double sparsity);

/// Rows of all heads, 64 tokens after 64 tokens.
///   keys    tile = 64 tokens of one channel; in a block of 64 tokens channel by channel
///   values  tile = 64 channels of one token; in a block of 64 tokens channel part by channel part, in it token by token
/// A tile has a 64-bit map whose highest bit is its first element, and a run of values in the dtype; `offsets` counts the
/// 32-bit words of all runs before each tile, and closes with their total.
class TileCoder final : public RowCoder {
 public:
  TileCoder(int kv_heads, int dim, Side side, Dtype dtype, double sparsity);

  std::int64_t rows() const override;
  void append(View<const float> rows) override;  // whole blocks of 64 rows
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;
  std::unique_ptr<RowCoder> fresh() const override;
  /// "k_values" or "v_values": stored values, fillers counted.
  void count(ContentCounts& counts) const override;

 private:
  struct Head {
    std::vector<std::uint64_t> bitmaps;
    std::vector<std::uint32_t> offsets{0};
    std::vector<std::byte> values;
  };
  std::int64_t tiles_per_block() const { return dim_; }
  void add_tile(Head& head, std::span<const float> tile);

  int dim_;
  Side side_;
  Dtype dtype_;
  double sparsity_;
  std::vector<Head> heads_;
};

}  // namespace kvatlas::mustafar_tiles
