#include "reference/quantization/gear/coder.hpp"

#include <algorithm>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/linalg/qr.hpp"
#include "reference/primitives/numbers.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas::gear_parts {

namespace {

bool joined(const Settings& s) { return s.backbone == Backbone::kcvt && s.side == Side::value; }

std::vector<std::byte> to_fp16(const linalg::Matrix& m) {
  std::vector<float> values;
  for (const double d : m.values()) values.push_back(num::clamp(static_cast<float>(d), -65504.0F, 65504.0F));
  std::vector<std::byte> out(values.size() * 2);
  num::store(Dtype::f16, values, out);
  return out;
}

/// Element e of vector v as a place in [kv_heads, n, dim]: keys have a vector a channel of all heads, values one a row.
struct Place {
  std::int64_t head, row, channel;
};
Place place(const Settings& s, std::int64_t v, std::int64_t e) {
  const std::int64_t wide = s.side == Side::key ? v : e;
  return {wide / s.dim, s.side == Side::key ? e : v, wide % s.dim};
}
std::int64_t vectors(const Settings& s, std::int64_t n) { return s.side == Side::key ? std::int64_t{s.kv_heads} * s.dim : n; }
std::int64_t vector_length(const Settings& s, std::int64_t n) { return s.side == Side::key ? n : std::int64_t{s.kv_heads} * s.dim; }

/// Takes the outliers of every vector out of `x`, which gets the vector's mean in their place.
void take_outliers(const Settings& s, Array& x, Block& block) {
  const std::int64_t n = block.rows, m = outliers_each_side(s, n), length = vector_length(s, n);
  if (m == 0) return;
  const int width = index_bytes(s, n);
  std::vector<float> values(static_cast<std::size_t>(length)), negated(values.size());
  for (std::int64_t v = 0; v < vectors(s, n); ++v) {
    const auto at = [&](std::int64_t e) -> float& {
      const Place p = place(s, v, e);
      return x.view()(p.head, p.row, p.channel);
    };
    for (std::int64_t e = 0; e < length; ++e) values[static_cast<std::size_t>(e)] = at(e);
    std::ranges::transform(values, negated.begin(), [](float f) { return -f; });
    const float mean = num::lane_sum(values) / static_cast<float>(length);
    for (const Slots& slots : {top_k(negated, m), top_k(values, m)})
      for (const std::int64_t e : slots) {
        append_float(block.outlier_values, Dtype::f16, saturated_fp16(values[static_cast<std::size_t>(e)]));
        for (int b = 0; b < width; ++b) block.outlier_indices.push_back(static_cast<std::byte>((e >> (8 * b)) & 0xFF));
        at(e) = mean;
      }
  }
}

}  // namespace

std::int64_t outliers_each_side(const Settings& s, std::int64_t n) {
  const std::int64_t wide = std::int64_t{s.kv_heads} * s.dim;
  const std::int64_t counted = s.side == Side::key && !s.keys_count_channels ? n : wide;
  return std::min(static_cast<std::int64_t>(static_cast<double>(counted) * s.sparsity / 2), vector_length(s, n) / 2);
}

int rank_of(const Settings& s, std::int64_t n, bool prompt) {
  return static_cast<int>(std::min({std::int64_t{prompt ? s.rank : s.later_rank}, n, std::int64_t{s.dim}}));
}

int index_bytes(const Settings& s, std::int64_t n) { return vector_length(s, n) <= 65536 ? 2 : 4; }

GroupQuantizer quantizer_of(const Settings& s, std::int64_t n) {
  const bool keys = s.side == Side::key;
  const int group = s.backbone == Backbone::kivi ? s.group_size : keys ? static_cast<int>(n) : s.kv_heads * s.dim;
  return {.bits = s.bits, .group_size = group, .axis = keys ? GroupAxis::tokens : GroupAxis::channels, .work = Dtype::f32, .meta = s.meta};
}

Block encode_block(const Settings& s, View<const float> rows, bool prompt, const RandomStream& start) {
  const std::int64_t n = rows.dim(1);
  Block block{.rows = n, .codes = {}, .outlier_values = {}, .outlier_indices = {}, .left = {}, .right = {}};
  Array x({s.kv_heads, n, s.dim});
  for (std::int64_t h = 0; h < s.kv_heads; ++h)
    for (std::int64_t i = 0; i < n; ++i) std::ranges::copy(rows.row(h, i), x.view().row(h, i).begin());
  take_outliers(s, x, block);
  const GroupQuantizer quantizer = quantizer_of(s, n);
  if (joined(s)) {
    block.codes.emplace_back(quantizer, s.kv_heads * s.dim);
    block.codes.front().append(joined_heads(x.view()).view());
  } else {
    for (std::int64_t h = 0; h < s.kv_heads; ++h) {
      block.codes.emplace_back(quantizer, s.dim);
      block.codes.back().append(x.view()[h]);
    }
  }
  const int rank = rank_of(s, n, prompt);
  for (int h = 0; h < s.kv_heads && rank > 0; ++h) {
    Array decoded({n, s.dim});
    decode_block(s, block, h, 0, decoded.view(), false);
    linalg::Matrix error(static_cast<std::size_t>(n), static_cast<std::size_t>(s.dim));
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t c = 0; c < s.dim; ++c)
        error(static_cast<std::size_t>(i), static_cast<std::size_t>(c)) = static_cast<double>(rows(h, i, c) - decoded.view()(i, c));
    linalg::Matrix p(static_cast<std::size_t>(s.dim), static_cast<std::size_t>(rank)), q;
    RandomStream stream = start;
    stream.head = static_cast<std::uint32_t>(h);
    for (std::size_t i = 0; i < p.rows() * p.cols(); ++i) p(i / p.cols(), i % p.cols()) = static_cast<double>(random_uniform(stream, i));
    const linalg::Matrix transposed = linalg::transpose(error);
    for (int loop = 0; loop < s.loops; ++loop) {
      const bool last = loop + 1 == s.loops;
      if (last) p = linalg::householder_qr(p).q;
      q = linalg::matmul(error, p);
      if (last) q = linalg::householder_qr(q).q;
      p = linalg::matmul(transposed, q);
    }
    block.left.push_back(to_fp16(q));
    block.right.push_back(to_fp16(p));
  }
  return block;
}

void decode_block(const Settings& s, const Block& block, int head, std::int64_t first, View<float> out, bool low_rank) {
  const auto h = static_cast<std::size_t>(head);
  if (joined(s)) block.codes.front().read(first, out, std::int64_t{head} * s.dim);
  else block.codes[h].read(first, out);
  const std::int64_t m = outliers_each_side(s, block.rows), rows = out.dim(0);
  const int width = index_bytes(s, block.rows);
  const bool keys = s.side == Side::key;
  const std::int64_t begin = keys ? std::int64_t{head} * s.dim : first, count = m == 0 ? 0 : keys ? s.dim : rows;
  for (std::int64_t v = begin; v < begin + count; ++v)
    for (std::int64_t e = 0; e < 2 * m; ++e) {
      const Place p = place(s, v, whole_at(block.outlier_indices, v * 2 * m + e, width));
      if (p.head == head && p.row >= first && p.row < first + rows) out(p.row - first, p.channel) = float_at(block.outlier_values, Dtype::f16, v * 2 * m + e);
    }
  if (!low_rank || block.left.empty()) return;
  const std::int64_t rank = static_cast<std::int64_t>(block.right[h].size()) / 2 / s.dim;
  std::vector<float> right(static_cast<std::size_t>(s.dim * rank)), left(static_cast<std::size_t>(rank));
  num::load(Dtype::f16, block.right[h], right);
  for (std::int64_t i = 0; i < rows; ++i) {
    num::load(Dtype::f16, std::span(block.left[h]).subspan(static_cast<std::size_t>((first + i) * rank * 2), static_cast<std::size_t>(rank * 2)), left);
    for (std::int64_t c = 0; c < s.dim; ++c) {
      float sum = 0;
      for (std::int64_t j = 0; j < rank; ++j) sum = num::fma(left[static_cast<std::size_t>(j)], right[static_cast<std::size_t>(c * rank + j)], sum);
      out(i, c) = out(i, c) + sum;
    }
  }
}

std::int64_t Coder::rows() const {
  std::int64_t n = 0;
  for (const Block& b : blocks_) n += b.rows;
  return n;
}

void Coder::add(View<const float> rows, bool prompt) {
  blocks_.push_back(encode_block(s_, rows, prompt,
                                 {.seed = s_.seed, .layer = static_cast<std::uint32_t>(2 * s_.layer + (s_.side == Side::key ? 0 : 1)), .head = 0,
                                  .step = static_cast<std::uint32_t>(blocks_.size())}));
}

void Coder::append(View<const float> rows) {
  if (prompt_) return add(rows, true);
  for (std::int64_t first = 0; first < rows.dim(1); first += s_.buffer.value) add(rows.slice(1, first, s_.buffer.value), false);
}

void Coder::read(int kv_head, std::int64_t first, View<float> out) const {
  std::int64_t start = 0;
  for (const Block& b : blocks_) {
    const std::int64_t from = std::max(first, start), to = std::min(first + out.dim(0), start + b.rows);
    if (from < to) decode_block(s_, b, kv_head, from - start, out.slice(0, from - first, to - from), true);
    start += b.rows;
  }
}

void Coder::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const Block& b = blocks_[i];
    const auto add = [&](const char* component, Scope scope, const std::string& name, std::span<const std::byte> bytes) {
      out.push_back({.name = cat(prefix, "block", i, "_", name), .component = component, .side = s_.side, .scope = scope, .bytes = {bytes.begin(), bytes.end()}});
    };
    for (std::size_t h = 0; h < b.codes.size(); ++h) {
      add("codes", Scope::token, cat("codes/", h), b.codes[h].codes());
      add("scales", Scope::group, cat("scales/", h), b.codes[h].scales());
      add("zeros", Scope::group, cat("zeros/", h), b.codes[h].zeros());
    }
    add("outliers", Scope::token, "outlier_values", b.outlier_values);
    add("outliers", Scope::token, "outlier_indices", b.outlier_indices);
    for (std::size_t h = 0; h < b.left.size(); ++h) {
      add("low_rank", Scope::token, cat("left/", h), b.left[h]);
      add("low_rank", Scope::sequence, cat("right/", h), b.right[h]);
    }
  }
}

void Coder::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  prompt_ = false;
  const auto find = [&](std::size_t i, const std::string& name) -> const std::vector<std::byte>& {
    return find_buffer(saved, cat(prefix, "block", i, "_", name)).bytes;
  };
  for (std::size_t i = 0; std::ranges::find(saved, cat(prefix, "block", i, "_codes/0"), &NamedBuffer::name) != saved.end(); ++i) {
    Block b;
    // The number of rows follows from the codes: whole groups of `bits`, which with kcvt keys are as long as the block.
    const std::int64_t heads = joined(s_) ? 1 : s_.kv_heads, width = joined(s_) ? std::int64_t{s_.kv_heads} * s_.dim : s_.dim;
    const auto code_bytes = static_cast<std::int64_t>(find(i, "codes/0").size());
    b.rows = s_.backbone == Backbone::kcvt && s_.side == Side::key
                 ? (code_bytes % s_.dim == 0 ? code_bytes / s_.dim * 8 / s_.bits : 0)
                 : code_bytes * 8 / (width * s_.bits);
    if (b.rows <= 0 || b.rows % s_.buffer.value != 0)
      throw InvalidArgument(cat("buffer ", prefix, "block", i, "_codes/0 has ", code_bytes, " bytes, must hold a multiple of ", s_.buffer.value, " rows"));
    for (std::int64_t h = 0; h < heads; ++h) {
      b.codes.emplace_back(quantizer_of(s_, b.rows), static_cast<int>(width));
      b.codes.back().load(find(i, cat("codes/", h)), find(i, cat("scales/", h)), find(i, cat("zeros/", h)), static_cast<int>(h));
    }
    b.outlier_values = find(i, "outlier_values");
    b.outlier_indices = find(i, "outlier_indices");
    const std::int64_t outliers = vectors(s_, b.rows) * 2 * outliers_each_side(s_, b.rows);
    const int wide = index_bytes(s_, b.rows);
    bool good = static_cast<std::int64_t>(b.outlier_values.size()) == 2 * outliers && static_cast<std::int64_t>(b.outlier_indices.size()) == wide * outliers;
    for (std::int64_t e = 0; good && e < outliers; ++e)
      good = whole_at(b.outlier_indices, e, wide) < vector_length(s_, b.rows) && num::is_finite(float_at(b.outlier_values, Dtype::f16, e));
    if (!good)
      throw InvalidArgument(cat("buffers ", prefix, "block", i, "_outlier_values and _outlier_indices must hold ", outliers,
                                " finite values and places below ", vector_length(s_, b.rows)));
    if (std::ranges::find(saved, cat(prefix, "block", i, "_left/0"), &NamedBuffer::name) != saved.end())
      for (int h = 0; h < s_.kv_heads; ++h) {
        b.left.push_back(find(i, cat("left/", h)));
        b.right.push_back(find(i, cat("right/", h)));
        const std::int64_t rank = static_cast<std::int64_t>(b.left.back().size()) / (2 * b.rows);
        bool fits = rank > 0 && static_cast<std::int64_t>(b.left.back().size()) == 2 * b.rows * rank &&
                    static_cast<std::int64_t>(b.right.back().size()) == 2 * s_.dim * rank;
        for (const auto* part : {&b.left.back(), &b.right.back()})
          for (std::int64_t e = 0; fits && e < static_cast<std::int64_t>(part->size()) / 2; ++e) fits = num::is_finite(float_at(*part, Dtype::f16, e));
        if (!fits)
          throw InvalidArgument(cat("buffers ", prefix, "block", i, "_left/", h, " and _right/", h, " must be finite factors of ", b.rows, " rows and ", s_.dim, " channels"));
      }
    blocks_.push_back(std::move(b));
  }
}

}  // namespace kvatlas::gear_parts
