// Double Sparsity's labels: which channels stand for a head (calibration), how their values are coded, how they score a token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/layer_graph.hpp"
#include "core/view.hpp"

namespace kvatlas::double_sparsity {

/// What a channel's importance is the sum of, over the tokens of the calibration text: |q| or |k| before RoPE, or the
/// product |q k| of each token with itself after RoPE.
enum class Statistic : std::uint8_t { q, k, qk };

/// Channel importance of the heads that own labels: float64 sums in token order, so chunks of a text cannot change a bit.
/// Only the order of channels is used; the released code sums means of equal blocks, which orders them alike.
class Calibration {
 public:
  Calibration(int heads, int dim) : dim_(dim), sums_(static_cast<std::size_t>(heads) * static_cast<std::size_t>(dim), 0.0) {}
  /// One token of one head: adds |a_c|, or |a_c b_c| where b is given.
  void add(int head, std::span<const float> a, std::span<const float> b = {});
  std::span<const double> sums(int head) const { return std::span(sums_).subspan(static_cast<std::size_t>(head) * static_cast<std::size_t>(dim_), static_cast<std::size_t>(dim_)); }
  std::vector<double>& values() { return sums_; }
  const std::vector<double>& values() const { return sums_; }
  /// The `count` most important channels of a head, most important first; of equal ones the lower channel first.
  std::vector<std::uint16_t> channels(int head, int count) const;

 private:
  int dim_;
  std::vector<double> sums_;
};

/// Codes of one label vector: uniform levels between its smallest and largest value.
///   scale  (2^bits - 1) * (1 / (max - min)), two roundings as the released code's division has them
///   code   clamp(rint((x - min) * scale), 0, 2^bits - 1)      value  code / scale + min
/// A range of zero takes the scale 2^bits - 1, as does one whose scale is zero or not finite.
struct Codes {
  float min = 0, max = 0;
  std::vector<std::uint8_t> codes;
};
Codes quantize(std::span<const float> values, int bits);
void dequantize(const Codes& codes, int bits, std::span<float> values);

/// How one label row is stored: values in the dtype (bits 16), or codes in whole bytes and then minimum and maximum in the
/// dtype, both of which are keys' values and so lose nothing.
struct LabelFormat {
  int channels = 0;
  int bits = 16;
  Dtype dtype = Dtype::bf16;
  bool coded() const { return bits < 16; }
  std::int64_t row_bytes() const;
  void encode(std::span<const float> values, std::span<std::byte> to) const;
  void decode(std::span<const std::byte> from, std::span<float> values) const;
};

/// A query's label as the scores use it: the chosen channels, coded and decoded where the labels are.
std::vector<float> query_label(std::span<const float> q, std::span<const std::uint16_t> channels, int bits);

/// qk_dot(query label, label) / sqrt(channels).
float label_score(std::span<const float> query, std::span<const float> label);

}  // namespace kvatlas::double_sparsity
