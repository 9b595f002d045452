#include "reference/retrieval/double_sparse/labels.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"

namespace kvatlas::double_sparsity {

namespace {

float levels_of(int bits) { return static_cast<float>((1 << bits) - 1); }

float scale_of(const Codes& c, int bits) {
  const float range = c.max - c.min;
  const float scale = levels_of(bits) * (1.0F / range);  // torch divides a number by a tensor in these two roundings
  return range == 0 || scale == 0 || !num::is_finite(scale) ? levels_of(bits) : scale;
}

}  // namespace

void Calibration::add(int head, std::span<const float> a, std::span<const float> b) {
  double* sum = sums_.data() + static_cast<std::size_t>(head) * static_cast<std::size_t>(dim_);
  for (std::size_t c = 0; c < a.size(); ++c) sum[c] += std::abs(static_cast<double>(b.empty() ? a[c] : a[c] * b[c]));
}

std::vector<std::uint16_t> Calibration::channels(int head, int count) const {
  const std::span<const double> sum = sums(head);
  std::vector<std::uint16_t> order(sum.size());
  std::iota(order.begin(), order.end(), std::uint16_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::uint16_t a, std::uint16_t b) { return sum[a] > sum[b]; });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

Codes quantize(std::span<const float> values, int bits) {
  KV_ASSERT(!values.empty() && bits >= 1 && bits <= 8, "a label has channels and 1 to 8 bits");
  Codes out{.min = values[0], .max = values[0], .codes = {}};
  for (const float x : values) {
    out.min = num::min(out.min, x);
    out.max = num::max(out.max, x);
  }
  const float scale = scale_of(out, bits);
  for (const float x : values)
    out.codes.push_back(static_cast<std::uint8_t>(num::clamp(num::rint((x - out.min) * scale), 0.0F, levels_of(bits))));
  return out;
}

void dequantize(const Codes& codes, int bits, std::span<float> values) {
  const float scale = scale_of(codes, bits);
  for (std::size_t c = 0; c < values.size(); ++c) values[c] = static_cast<float>(codes.codes[c]) / scale + codes.min;
}

std::int64_t LabelFormat::row_bytes() const {
  if (!coded()) return std::int64_t{channels} * bytes_of(dtype);
  return num::packed_bytes(channels, bits).value + 2 * bytes_of(dtype);
}

void LabelFormat::encode(std::span<const float> values, std::span<std::byte> to) const {
  to = to.first(static_cast<std::size_t>(row_bytes()));
  if (!coded()) return num::store(dtype, values, to);
  const Codes c = quantize(values, bits);
  const auto packed = static_cast<std::size_t>(num::packed_bytes(channels, bits).value);
  num::pack(c.codes, bits, to.first(packed));
  const float ends[2] = {c.min, c.max};
  num::store(dtype, ends, to.subspan(packed));
}

void LabelFormat::decode(std::span<const std::byte> from, std::span<float> values) const {
  if (!coded()) return num::load(dtype, from, values);
  const auto packed = static_cast<std::size_t>(num::packed_bytes(channels, bits).value);
  Codes c{.min = 0, .max = 0, .codes = std::vector<std::uint8_t>(static_cast<std::size_t>(channels))};
  num::unpack(from.first(packed), bits, c.codes);
  float ends[2] = {};
  num::load(dtype, from.subspan(packed), ends);
  c.min = ends[0];
  c.max = ends[1];
  dequantize(c, bits, values);
}

std::vector<float> query_label(std::span<const float> q, std::span<const std::uint16_t> channels, int bits) {
  std::vector<float> label;
  for (const std::uint16_t c : channels) label.push_back(q[c]);
  if (bits < 16) dequantize(quantize(label, bits), bits, label);
  return label;
}

float label_score(std::span<const float> query, std::span<const float> label) {
  return num::qk_dot(query, label) / std::sqrt(static_cast<float>(query.size()));
}

}  // namespace kvatlas::double_sparsity
