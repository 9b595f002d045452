// cachegen's codes: which levels a layer gets, how a chunk of tokens becomes symbols, and the coded form of one side of a
// layer. `code` is what the public code does, `paper` the delta coding of the paper's section 5; they share the coder only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/layer_graph.hpp"
#include "core/units.hpp"
#include "core/view.hpp"
#include "reference/cache.hpp"

namespace kvatlas::cachegen {

enum class Codec : std::uint8_t { code, paper };
/// Which table of bins: the serving default, or a streaming level of the artifact.
enum class Level : std::uint8_t { standard, level1, level2, level3 };

inline constexpr std::int64_t kSubChunk = 256;  // symbols of one stream
inline constexpr std::int64_t kGroup = 10;      // paper: an anchor and the nine tokens that refer to it

/// Bins of one side of layer `ordinal` of `layers`. standard: 70B table at 80 layers, all 32 below 10 layers, else the 7B
/// table whose last range goes on to the end.
/// source   LMCache cachegen_basics.py (standard); CacheGen artifact, QUANT_LEVEL of Mistral-7B (levels)
int bins_of(Level level, int ordinal, int layers, Side side);

/// floor(bins / 2) - 1: the code of zero and the largest magnitude; 2 * that + 1 codes are used.
constexpr int half_range(int bins) { return bins / 2 - 1; }

/// paper: width of a delta's bin, 0.5, 1 and 1.5 in the first, middle and last third of the layers.
float delta_width(int ordinal, int layers);

/// rint(x * (half / absmax) + half), float32, each operation rounded; `half` where absmax is 0 or half / absmax overflows.
/// source   sheet cachegen, step 2; the released code turns an all-zero token into NaN codes
std::uint8_t quantize(float x, float absmax, int half);
/// (code - half) / half * absmax in float32.
float dequantize(std::uint8_t code, float absmax, int half);

/// How one side of one layer is coded.
struct Layout {
  Codec codec = Codec::code;
  int channels = 0;      // kv_heads * dim
  int bins = 32;         // code: bins of this layer and side
  int table_bins = 32;   // code: the alphabet of every table, the largest bins of the cache
  float width = 0.5F;    // paper: bin of a delta
  Dtype dtype = Dtype::bf16;
  std::int64_t chunk = 256;
};

/// Bytes of one side of one layer that depend on lengths alone, and the numbers of streams.
struct FixedBytes {
  std::int64_t absmax = 0, cdf = 0, lengths = 0;
};
FixedBytes fixed_bytes(const Layout& layout, std::int64_t tokens);

/// Bytes of all streams if keys and values were independent normal numbers of one variance (paper: of variance 1): per
/// stream the entropy that so many draws show, 2 bits of end and 3.5 bits of padding.
std::int64_t expected_stream_bytes(const Layout& layout, std::int64_t tokens);

/// The coded tokens of one side of one layer, chunk after chunk.
class CodedSide {
 public:
  explicit CodedSide(const Layout& layout) : layout_(layout) {}

  const Layout& layout() const { return layout_; }
  std::int64_t tokens() const { return tokens_; }
  std::int64_t stream_bytes() const { return static_cast<std::int64_t>(streams_.size()); }

  /// Codes all tokens of a prompt, [tokens, channels] in the dtype.
  void encode(View<const float> rows);
  /// Decoded tokens of channels [first, first + out.dim(1)), rounded to the dtype.
  void decode(int first, View<float> out) const;

  void buffers(const std::string& prefix, Side side, std::vector<NamedBuffer>& out) const;
  /// throws InvalidArgument unless the buffers are a coded form of `tokens` tokens
  void load(const std::string& prefix, std::int64_t tokens, std::span<const NamedBuffer> saved);

  // The stored parts, in the order chunk, (paper: anchors, deltas), sub-chunk, channel.
  const std::vector<std::byte>& streams() const { return streams_; }
  const std::vector<std::uint16_t>& tables() const { return tables_; }    // [chunk, plane, channel, alphabet + 1]
  const std::vector<std::int32_t>& lengths() const { return lengths_; }   // [chunk, plane, sub-chunk, channel]
  const std::vector<float>& absmax() const { return absmax_; }            // in the dtype

 private:
  Layout layout_;
  std::int64_t tokens_ = 0;
  std::vector<std::byte> streams_;
  std::vector<std::uint16_t> tables_;
  std::vector<std::int32_t> lengths_;
  std::vector<float> absmax_;
};

}  // namespace kvatlas::cachegen
