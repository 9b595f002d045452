#include "reference/quantization/kvquant/coder.hpp"

#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/primitives/numbers.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas::kvquant_parts {

namespace {

/// Extremes of a token: its n largest values by `score` and the n smallest of the others, channels ascending, and the next one on
/// each side.
struct Extremes {
  Slots high, low;
  float next_high = 0, next_low = 0;
};
Extremes extremes(std::span<const float> score, int n) {
  Extremes e;
  e.high = top_k(score, n);
  std::vector<float> negated(score.begin(), score.end());
  for (float& f : negated) f = -f;
  for (const std::int64_t at : e.high) negated[static_cast<std::size_t>(at)] = -num::infinity();  // equal values: a channel is listed once
  e.low = top_k(negated, n);
  std::vector<float> sorted(score.begin(), score.end());
  std::ranges::sort(sorted);
  e.next_high = sorted[sorted.size() - 1 - static_cast<std::size_t>(n)];
  e.next_low = sorted[static_cast<std::size_t>(n)];
  return e;
}

Dtype value_type(const Settings& s) { return s.storage == Storage::paper ? Dtype::f16 : Dtype::f32; }
int index_size(const Settings& s) { return s.storage == Storage::paper ? 2 : 4; }
/// Numbers that a token of values keeps beside its codes, and their type.
int range_numbers(const Settings& s) { return s.side == Side::key ? 0 : s.storage == Storage::paper ? 2 : 1 << s.bits; }

struct Range {
  float range = 0, offset = 0;
};
Range channel_range(const Tables& t, std::size_t c) { return {(t.upper[c] - t.lower[c]) / 2.0F, (t.upper[c] + t.lower[c]) / 2.0F}; }

}  // namespace

Tables calibrate(const Settings& s, View<const float> rows) {
  const Array all = joined_heads(rows);
  const std::int64_t n = all.view().dim(0), hidden = s.hidden();
  Tables t;
  std::vector<float> inside;  // normalised values within the thresholds
  if (s.side == Side::key) {
    std::vector<float> channel(static_cast<std::size_t>(n));
    for (std::int64_t c = 0; c < hidden; ++c) {
      for (std::int64_t i = 0; i < n; ++i) channel[static_cast<std::size_t>(i)] = all.view()(i, c);
      std::ranges::sort(channel);
      t.lower.push_back(saturated_fp16(static_cast<float>(kvquant_nuq::percentile(channel, s.outliers / 2))));
      t.upper.push_back(saturated_fp16(static_cast<float>(kvquant_nuq::percentile(channel, 1 - s.outliers / 2))));
      const Range r = channel_range(t, static_cast<std::size_t>(c));
      if (r.range == 0) continue;
      for (std::int64_t i = 0; i < n; ++i) {
        const float x = (all.view()(i, c) - r.offset) / r.range;
        if (std::fabs(x) <= 1.0F) inside.push_back(x);
      }
    }
  } else {
    for (std::int64_t i = 0; i < n; ++i) {
      const auto token = all.view().row(i);
      const Extremes e = extremes(token, s.each_side());
      const float range = (e.next_high - e.next_low) / 2.0F, offset = (e.next_high + e.next_low) / 2.0F;
      if (range == 0) continue;
      for (const float f : token) {
        const float x = (f - offset) / range;
        if (std::fabs(x) <= 1.0F) inside.push_back(x);
      }
    }
  }
  switch (s.datatype) {
    case Datatype::uniform: t.codebook = kvquant_nuq::uniform_codebook(s.bits); break;
    case Datatype::nf: t.codebook = kvquant_nuq::normal_codebook(s.bits); break;
    case Datatype::nuq:
      t.codebook = kvquant_nuq::fit_codebook(inside, {}, 1 << s.bits, {.seed = s.seed, .layer = static_cast<std::uint32_t>(s.layer), .head = 0,
                                                                      .step = s.side == Side::key ? 0U : 1U}).entries;
      break;
  }
  if (s.q_norm) t.norm = kvquant_nuq::fit_norm(inside, t.codebook);
  return t;
}

float Coder::entry(std::uint32_t code, float range, float offset) const {
  float e = tables_.codebook[code];
  if (s_.q_norm) e = e * tables_.norm.scale + tables_.norm.offset;
  return e * range + offset;
}

void Coder::append_token(std::span<const float> token) {
  const int n = s_.each_side(), hidden = s_.hidden();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(hidden));
  std::vector<std::pair<std::int64_t, float>> outliers;
  if (s_.side == Side::key) {
    std::vector<float> r(codes.size());
    for (std::size_t c = 0; c < codes.size(); ++c) {
      const Range of = channel_range(tables_, c);
      r[c] = of.range == 0 ? 0.0F : (token[c] - of.offset) / of.range;
      codes[c] = kvquant_nuq::nearest_entry(tables_.codebook, r[c]);
    }
    const auto keep = [&](const Slots& slots, bool upper) {
      for (const std::int64_t at : slots) {
        const auto c = static_cast<std::size_t>(at);
        const Range of = channel_range(tables_, c);
        const bool beyond = upper ? r[c] > 1.0F : r[c] < -1.0F;
        outliers.emplace_back(at, beyond ? token[c] - entry(codes[c], of.range, of.offset) : 0.0F);
      }
    };
    if (n > 0) {
      const Extremes e = extremes(r, n);
      keep(e.low, false);
      keep(e.high, true);
    }
  } else {
    const Extremes e = extremes(token, n);
    const float scale = s_.storage == Storage::paper ? saturated_fp16((e.next_high - e.next_low) / 2.0F) : (e.next_high - e.next_low) / 2.0F;
    const float middle = s_.storage == Storage::paper ? saturated_fp16((e.next_high + e.next_low) / 2.0F) : (e.next_high + e.next_low) / 2.0F;
    for (std::size_t c = 0; c < codes.size(); ++c)
      codes[c] = scale == 0 ? std::uint8_t{0} : kvquant_nuq::nearest_entry(tables_.codebook, (token[c] - middle) / scale);
    const auto forced = static_cast<std::uint8_t>((1 << (s_.bits - 1)) - 1);  // an entry near the middle
    for (const Slots& slots : {e.low, e.high})
      for (const std::int64_t at : slots) {
        codes[static_cast<std::size_t>(at)] = forced;
        outliers.emplace_back(at, token[static_cast<std::size_t>(at)] - entry(forced, scale, middle));
      }
    if (s_.storage == Storage::paper) {
      append_float(ranges_, Dtype::f16, scale);
      append_float(ranges_, Dtype::f16, middle);
    } else {
      for (std::uint32_t code = 0; code < (1U << s_.bits); ++code) append_float(ranges_, Dtype::f32, entry(code, scale, middle));
    }
  }
  std::ranges::sort(outliers, {}, &std::pair<std::int64_t, float>::first);
  for (const auto& [at, value] : outliers) {
    append_float(outlier_values_, value_type(s_), s_.storage == Storage::paper ? saturated_fp16(value) : value);
    append_whole(outlier_indices_, at, index_size(s_));
  }
  for (std::size_t h = 0; h < heads_.size(); ++h) {
    const std::size_t at = heads_[h].size(), bytes = static_cast<std::size_t>(num::packed_bytes(s_.dim, s_.bits).value);
    heads_[h].resize(at + bytes);
    num::pack(std::span(codes).subspan(h * static_cast<std::size_t>(s_.dim), static_cast<std::size_t>(s_.dim)), s_.bits, std::span(heads_[h]).subspan(at));
  }
  ++rows_;
}

void Coder::append(View<const float> rows) {
  if (tables_.codebook.empty()) tables_ = calibrate(s_, rows);
  const Array all = joined_heads(rows);
  for (std::int64_t i = 0; i < all.view().dim(0); ++i) append_token(all.view().row(i));
}

void Coder::read(int kv_head, std::int64_t first, View<float> out) const {
  const std::int64_t row_bytes = num::packed_bytes(s_.dim, s_.bits).value, listed = 2 * s_.each_side();
  const auto* codes = reinterpret_cast<const std::uint8_t*>(heads_[static_cast<std::size_t>(kv_head)].data());
  const std::int64_t begin = std::int64_t{kv_head} * s_.dim;
  for (std::int64_t i = 0; i < out.dim(0); ++i) {
    const std::int64_t row = first + i;
    Range of;
    if (s_.side == Side::value && s_.storage == Storage::paper) of = {float_at(ranges_, Dtype::f16, 2 * row), float_at(ranges_, Dtype::f16, 2 * row + 1)};
    for (std::int64_t c = 0; c < s_.dim; ++c) {
      const std::uint32_t code = num::code_at(codes + row * row_bytes, c, s_.bits);
      if (s_.side == Side::key) of = channel_range(tables_, static_cast<std::size_t>(begin + c));
      out(i, c) = s_.side == Side::value && s_.storage == Storage::released ? float_at(ranges_, Dtype::f32, (row << s_.bits) + code)
                                                                            : entry(code, of.range, of.offset);
    }
    for (std::int64_t e = row * listed; e < (row + 1) * listed; ++e) {
      const std::int64_t c = whole_at(outlier_indices_, e, index_size(s_)) - begin;
      if (c >= 0 && c < s_.dim) out(i, c) = out(i, c) + float_at(outlier_values_, value_type(s_), e);
    }
  }
}

void Coder::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  const auto add = [&](const char* component, Scope scope, const std::string& name, std::vector<std::byte> bytes) {
    out.push_back({.name = prefix + name, .component = component, .side = s_.side, .scope = scope, .bytes = std::move(bytes)});
  };
  for (std::size_t h = 0; h < heads_.size(); ++h) add("codes", Scope::token, cat("codes/head", h), heads_[h]);
  if (range_numbers(s_) > 0) add("ranges", Scope::token, "ranges", ranges_);
  if (s_.each_side() > 0) {
    add("outliers", Scope::token, "outlier_values", outlier_values_);
    add("outliers", Scope::token, "outlier_indices", outlier_indices_);
  }
  std::vector<std::byte> thresholds, codebook;
  if (rows_ > 0) {
    for (const auto* part : {&tables_.lower, &tables_.upper})
      for (const float f : *part) append_float(thresholds, Dtype::f16, f);
    for (const float f : tables_.codebook) append_float(codebook, Dtype::f32, f);
    if (s_.q_norm) {
      append_float(codebook, Dtype::f32, tables_.norm.scale);
      append_float(codebook, Dtype::f32, tables_.norm.offset);
    }
  }
  if (s_.side == Side::key) add("thresholds", Scope::layer, "thresholds", std::move(thresholds));
  add("codebook", Scope::layer, "codebook", std::move(codebook));
}

void Coder::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  const auto find = [&](const std::string& name) -> const std::vector<std::byte>& { return find_buffer(saved, prefix + name).bytes; };
  const std::int64_t row_bytes = num::packed_bytes(s_.dim, s_.bits).value, listed = 2 * s_.each_side();
  rows_ = static_cast<std::int64_t>(find("codes/head0").size()) / row_bytes;
  const auto require = [&](const std::string& name, std::int64_t bytes) {
    if (static_cast<std::int64_t>(find(name).size()) != bytes)
      throw InvalidArgument(cat("buffer ", prefix, name, " has ", find(name).size(), " bytes, must have ", bytes, " for ", rows_, " rows"));
  };
  const auto finite = [&](const std::string& name, Dtype type) {
    const auto& bytes = find(name);
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(bytes.size()) / bytes_of(type); ++i)
      if (!num::is_finite(float_at(bytes, type, i))) throw InvalidArgument(cat("buffer ", prefix, name, " holds a number that is not finite"));
  };
  for (std::size_t h = 0; h < heads_.size(); ++h) {
    require(cat("codes/head", h), rows_ * row_bytes);
    heads_[h] = find(cat("codes/head", h));
  }
  if (range_numbers(s_) > 0) {
    require("ranges", rows_ * range_numbers(s_) * bytes_of(value_type(s_)));
    finite("ranges", value_type(s_));
    ranges_ = find("ranges");
  }
  if (listed > 0) {
    require("outlier_values", rows_ * listed * bytes_of(value_type(s_)));
    require("outlier_indices", rows_ * listed * index_size(s_));
    finite("outlier_values", value_type(s_));
    outlier_values_ = find("outlier_values");
    outlier_indices_ = find("outlier_indices");
    for (std::int64_t e = 0; e < rows_ * listed; ++e) {
      const std::int64_t at = whole_at(outlier_indices_, e, index_size(s_));
      if (at >= s_.hidden()) throw InvalidArgument(cat("buffer ", prefix, "outlier_indices holds ", at, ", must be below ", s_.hidden()));
      if (e % listed > 0 && whole_at(outlier_indices_, e - 1, index_size(s_)) >= at)
        throw InvalidArgument(cat("buffer ", prefix, "outlier_indices: channel ", at, " of row ", e / listed, " must be above the one before it"));
    }
  }
  const std::int64_t there = rows_ > 0 ? 1 : 0;
  if (s_.side == Side::key) {
    require("thresholds", there * 2 * s_.hidden() * 2);
    finite("thresholds", Dtype::f16);
  }
  require("codebook", there * 4 * ((1 << s_.bits) + (s_.q_norm ? 2 : 0)));
  finite("codebook", Dtype::f32);
  if (there == 0) return;
  Tables t;
  for (std::int64_t c = 0; s_.side == Side::key && c < s_.hidden(); ++c) {
    t.lower.push_back(float_at(find("thresholds"), Dtype::f16, c));
    t.upper.push_back(float_at(find("thresholds"), Dtype::f16, s_.hidden() + c));
    if (t.upper.back() < t.lower.back()) throw InvalidArgument(cat("buffer ", prefix, "thresholds: the upper one of channel ", c, " is below the lower one"));
  }
  for (std::int64_t i = 0; i < (1 << s_.bits); ++i) t.codebook.push_back(float_at(find("codebook"), Dtype::f32, i));
  if (s_.q_norm) t.norm = {float_at(find("codebook"), Dtype::f32, 1 << s_.bits), float_at(find("codebook"), Dtype::f32, (1 << s_.bits) + 1)};
  tables_ = std::move(t);
}

}  // namespace kvatlas::kvquant_parts
