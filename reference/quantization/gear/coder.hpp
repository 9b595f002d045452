// GEAR's three parts of one side: group codes of what is left of the rows once outliers are taken out, the outliers, and a
// low-rank approximation of the error.
#pragma once

#include <cstdint>
#include <vector>

#include "core/philox.hpp"
#include "reference/primitives/row_coder.hpp"

namespace kvatlas::gear_parts {

enum class Backbone : std::uint8_t { kivi, kcvt };

struct Settings {
  int kv_heads = 1, dim = 0;
  Side side = Side::key;
  Backbone backbone = Backbone::kivi;
  int bits = 2;
  int group_size = 64;          // kivi: tokens of a key channel, channels of a value
  MetaType meta = MetaType::f16;
  double sparsity = 0.02;
  bool keys_count_channels = false;  // outliers of a key channel are counted as those of a value row
  int rank = 4, later_rank = 2;      // of the prompt's rows, of those coded later
  int loops = 3;
  Tokens buffer{64};            // rows that are coded together after the prompt
  std::uint64_t seed = 0;
  int layer = 0;
};

/// Largest, and as many smallest, values of each vector that are kept apart: a key channel over n rows, a value row over all
/// heads.
std::int64_t outliers_each_side(const Settings& s, std::int64_t n);
/// Rank of n rows of one head.
int rank_of(const Settings& s, std::int64_t n, bool prompt);
/// 2 bytes while an index of a vector over n rows fits.
int index_bytes(const Settings& s, std::int64_t n);
GroupQuantizer quantizer_of(const Settings& s, std::int64_t n);

/// The parts of n rows that were coded together.
struct Block {
  std::int64_t rows = 0;
  std::vector<GroupRows> codes;                         // one a head; one for all heads' values with kcvt
  std::vector<std::byte> outlier_values;                // fp16; vector by vector: smallest, then largest, each ascending in index
  std::vector<std::byte> outlier_indices;
  std::vector<std::vector<std::byte>> left, right;      // fp16 [rows, rank] and [dim, rank], one a head
};

/// A block of `rows` [kv_heads, n, dim]; `start` draws the first factor (uniform in [0, 1)), its head is the head's index.
Block encode_block(const Settings& s, View<const float> rows, bool prompt, const RandomStream& start);

class Coder final : public RowCoder {
 public:
  explicit Coder(const Settings& s) : s_(s) {}

  std::int64_t rows() const override;
  void append(View<const float> rows) override;
  void end_prompt() override { prompt_ = false; }
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;
  std::unique_ptr<RowCoder> fresh() const override { return std::make_unique<Coder>(s_); }

 private:
  void add(View<const float> rows, bool prompt);

  Settings s_;
  std::vector<Block> blocks_;
  bool prompt_ = true;
};

/// Dense and sparse part of one head, and with `low_rank` the approximation of the error on top.
void decode_block(const Settings& s, const Block& block, int head, std::int64_t first, View<float> out, bool low_rank);

}  // namespace kvatlas::gear_parts
