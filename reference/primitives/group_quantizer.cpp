#include "reference/primitives/group_quantizer.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"

namespace kvatlas {

namespace {

float largest_of(Dtype t) {
  return t == Dtype::f16 ? 65504.0F : num::decode(t, t == Dtype::bf16 ? 0x7F7FU : 0x7F7FFFFFU);
}

}  // namespace

GroupQuantizer::Meta GroupQuantizer::encode(std::span<const float> x, std::span<std::uint8_t> codes) const {
  const auto in_work = [this](float f) { return num::round_to(work, f); };
  const float bound = largest_of(work), top = static_cast<float>((1 << bits) - 1);
  const auto input = [&](std::size_t i) { return in_work(num::clamp(x[i], -bound, bound)); };
  float low = input(0), high = low;
  for (std::size_t i = 1; i < x.size(); ++i) {
    low = num::min(low, input(i));
    high = num::max(high, input(i));
  }
  const float scale = num::round_to(meta, in_work(in_work(high - low) / top));
  const float minimum = num::round_to(meta, low);
  if (scale == 0 || !num::is_finite(scale)) {
    std::fill(codes.begin(), codes.end(), std::uint8_t{0});
    return {.scale = 0, .minimum = minimum};
  }
  for (std::size_t i = 0; i < x.size(); ++i)
    codes[i] = static_cast<std::uint8_t>(num::rint(num::clamp(in_work(in_work(input(i) - minimum) / scale), 0.0F, top)));
  return {.scale = scale, .minimum = minimum};
}

float GroupQuantizer::decode(std::uint32_t code, Meta m) { return num::fma(static_cast<float>(code), m.scale, m.minimum); }

CodeFormat GroupQuantizer::format() const {
  return {.kind = CodeKind::integer, .bits = bits, .axis = axis, .group_size = group_size, .group_bits = 2 * 8 * bytes_of(meta)};
}

void GroupRows::append(View<const float> rows) {
  KV_ASSERT(rows.dim(0) % q_.block_rows() == 0 && rows.dim(1) == dim_, "rows of whole blocks");
  const bool along_tokens = q_.axis == GroupAxis::tokens;
  const auto size = static_cast<std::size_t>(q_.group_size);
  const std::int64_t groups = rows.dim(0) * dim_ / q_.group_size;
  const std::int64_t per_block = q_.block_rows() * dim_ / q_.group_size;
  const auto meta_bytes = static_cast<std::size_t>(bytes_of(q_.meta));
  std::vector<float> x(size);
  std::vector<std::uint8_t> codes(size);
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t block = group / per_block, within = group % per_block;
    for (int e = 0; e < q_.group_size; ++e)
      x[static_cast<std::size_t>(e)] = along_tokens ? rows(block * q_.group_size + e, within) : rows(block, within * q_.group_size + e);
    const GroupQuantizer::Meta m = q_.encode(x, codes);
    const std::size_t at = codes_.size(), meta_at = scales_.size();
    codes_.resize(at + static_cast<std::size_t>(group_bytes()));
    num::pack(codes, q_.bits, std::span(codes_).subspan(at));
    scales_.resize(meta_at + meta_bytes);
    minima_.resize(meta_at + meta_bytes);
    num::store(q_.meta, std::span(&m.scale, 1), std::span(scales_).subspan(meta_at));
    num::store(q_.meta, std::span(&m.minimum, 1), std::span(minima_).subspan(meta_at));
  }
  rows_ += rows.dim(0);
}

GroupQuantizer::Meta GroupRows::meta_of(std::int64_t group) const {
  const auto bytes = static_cast<std::size_t>(bytes_of(q_.meta)), at = static_cast<std::size_t>(group) * bytes;
  GroupQuantizer::Meta m;
  num::load(q_.meta, std::span(scales_).subspan(at, bytes), std::span(&m.scale, 1));
  num::load(q_.meta, std::span(minima_).subspan(at, bytes), std::span(&m.minimum, 1));
  return m;
}

void GroupRows::read(std::int64_t first, View<float> out) const {
  const std::int64_t size = q_.group_size;
  const auto* codes = reinterpret_cast<const std::uint8_t*>(codes_.data());
  for (std::int64_t i = 0; i < out.dim(0); ++i) {
    const std::int64_t row = first + i;
    for (std::int64_t c = 0; c < dim_; ++c) {
      const bool along_tokens = q_.axis == GroupAxis::tokens;
      const std::int64_t group = along_tokens ? row / size * dim_ + c : row * (dim_ / size) + c / size;
      const std::int64_t element = along_tokens ? row % size : c % size;
      out(i, c) = GroupQuantizer::decode(num::code_at(codes + group * group_bytes(), element, q_.bits), meta_of(group));
    }
  }
}

void GroupRows::load(std::span<const std::byte> codes, std::span<const std::byte> scales, std::span<const std::byte> minima, int head) {
  const std::int64_t groups = static_cast<std::int64_t>(codes.size()) / group_bytes();
  const std::int64_t per_block = q_.block_rows() * dim_ / q_.group_size;
  const auto meta_bytes = static_cast<std::size_t>(groups * bytes_of(q_.meta));
  if (static_cast<std::int64_t>(codes.size()) % group_bytes() != 0 || groups % per_block != 0 || scales.size() != meta_bytes ||
      minima.size() != meta_bytes)
    throw InvalidArgument(cat("codes, scales and zeros of head ", head, " have ", codes.size(), ", ", scales.size(), " and ",
                              minima.size(), " bytes, must be whole blocks of ", q_.block_rows(), " rows of ", dim_, " values"));
  codes_.assign(codes.begin(), codes.end());
  scales_.assign(scales.begin(), scales.end());
  minima_.assign(minima.begin(), minima.end());
  rows_ = groups / per_block * q_.block_rows();
}

}  // namespace kvatlas
