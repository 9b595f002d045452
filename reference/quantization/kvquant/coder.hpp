// KVQuant's stored form of one side: codes of a table, per-channel thresholds of keys or per-token ranges of values, and a
// fixed list of outliers for each token, all heads together.
#pragma once

#include <cstdint>
#include <vector>

#include "reference/primitives/row_coder.hpp"
#include "reference/quantization/kvquant/nuq.hpp"

namespace kvatlas::kvquant_parts {

enum class Datatype : std::uint8_t { nuq, nf, uniform };
enum class Storage : std::uint8_t { paper, released };

struct Settings {
  int kv_heads = 1, dim = 0;
  Side side = Side::key;
  int bits = 4;
  double outliers = 0.01;    // share of a token's channels that is kept apart
  Datatype datatype = Datatype::nuq;
  bool q_norm = false;
  Storage storage = Storage::paper;
  std::uint64_t seed = 0;
  int layer = 0;

  int hidden() const { return kv_heads * dim; }
  /// Outliers of a token on each side: floor(outliers / 2 * hidden) + 1; none without outliers.
  int each_side() const { return outliers > 0 ? static_cast<int>(outliers / 2 * hidden()) + 1 : 0; }
};

/// What calibration finds; made of the first rows that are coded unless it was given.
struct Tables {
  std::vector<float> lower, upper;  // fp16 values, one a channel; keys alone
  std::vector<float> codebook;      // ascending
  kvquant_nuq::Norm norm;
};
/// The calibration routine on rows [kv_heads, n, dim]: thresholds, normalised values inside them, code table, norm.
Tables calibrate(const Settings& s, View<const float> rows);

class Coder final : public RowCoder {
 public:
  /// `given` tables replace the calibration; a codebook is empty where none is given.
  explicit Coder(const Settings& s, Tables given = {}) : s_(s), given_(!given.codebook.empty()), tables_(std::move(given)), heads_(static_cast<std::size_t>(s.kv_heads)) {}

  std::int64_t rows() const override { return rows_; }
  void append(View<const float> rows) override;
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;
  std::unique_ptr<RowCoder> fresh() const override { return std::make_unique<Coder>(s_, given_ ? tables_ : Tables{}); }

 private:
  void append_token(std::span<const float> token);
  /// The value of a code before outliers: keys by channel, values by the token's range.
  float entry(std::uint32_t code, float range, float offset) const;

  Settings s_;
  bool given_;
  Tables tables_;
  std::int64_t rows_ = 0;
  std::vector<std::vector<std::byte>> heads_;  // codes, one run a head
  std::vector<std::byte> ranges_;              // values: scale and offset of each token, or its expanded table
  std::vector<std::byte> outlier_values_, outlier_indices_;
};

}  // namespace kvatlas::kvquant_parts
