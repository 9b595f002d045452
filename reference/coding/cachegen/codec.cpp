#include "reference/coding/cachegen/codec.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/arith.hpp"
#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/primitives/arithmetic_coder.hpp"

namespace kvatlas::cachegen {
namespace {

constexpr int kPaperHalf = 127;  // 8-bit anchors; deltas are clamped to as many codes
constexpr int kPaperBins = 256;

/// One set of symbols of a chunk: `count` tokens that share one table a channel.
struct Plane {
  std::int64_t count = 0;
  int alphabet = 0;
};

/// code: one plane. paper: anchors, then deltas (none in a chunk of one token).
std::vector<Plane> planes_of(const Layout& layout, std::int64_t tokens) {
  if (layout.codec == Codec::code) return {{tokens, layout.table_bins}};
  const std::int64_t anchors = ceil_div(tokens, kGroup);
  std::vector<Plane> planes{{anchors, kPaperBins}};
  if (tokens > anchors) planes.push_back({tokens - anchors, kPaperBins});
  return planes;
}

/// Tokens of a chunk that have a scale of their own.
std::int64_t scales_of(const Layout& layout, std::int64_t tokens) {
  return layout.codec == Codec::code ? tokens : ceil_div(tokens, kGroup);
}

template <class F>
void for_chunks(const Layout& layout, std::int64_t tokens, const F& body) {
  for (std::int64_t first = 0; first < tokens; first += layout.chunk) body(first, std::min(layout.chunk, tokens - first));
}

/// Shares of the codes round(z) clamped to [-half, half], z normal with standard deviation `deviation` in bins: Simpson's
/// rule over 16 strips a bin, normalised; float64 in ascending order.
std::vector<double> code_shares(double deviation, int half) {
  std::vector<double> share(static_cast<std::size_t>(2 * half + 1));
  double total = 0.0;
  const int reach = std::max(half, static_cast<int>(10.0 * deviation) + 1);
  for (int bin = -reach; bin <= reach; ++bin) {
    double sum = 0.0;
    for (int i = 0; i <= 16; ++i) {
      const double z = (bin - 0.5 + i / 16.0) / deviation;
      sum += (i == 0 || i == 16 ? 1.0 : i % 2 == 1 ? 4.0 : 2.0) * num::exp(-0.5 * z * z);
    }
    share[static_cast<std::size_t>(std::clamp(bin, -half, half) + half)] += sum;
    total += sum;
  }
  for (double& s : share) s /= total;
  return share;
}

/// Mean entropy, in bits, that `count` draws from these shares show: what a table made of the draws themselves costs.
double shown_entropy(const std::vector<double>& share, std::int64_t count) {
  const auto n = static_cast<double>(count);
  const auto codes = static_cast<std::int64_t>(std::ranges::count_if(share, [&](double s) { return s > 1e-4; }));
  double entropy = 0.0;
  if (count >= 4 * codes) {  // Miller and Madow: too low by (codes - 1) / (2 ln 2 count)
    for (const double s : share)
      if (s > 0.0) entropy -= s * num::log2(s);
    return std::max(0.0, entropy - static_cast<double>(codes - 1) / (1.3862943611198906 * n));
  }
  for (const double s : share) {  // few draws: the binomial distribution of each code's count
    double chance = num::pow(1.0 - s, n);
    for (std::int64_t k = 1; k <= count && s < 1.0; ++k) {
      const auto times = static_cast<double>(k);
      chance *= (n - times + 1.0) / times * s / (1.0 - s);
      entropy += chance * times / n * num::log2(n / times);
    }
  }
  return entropy;
}

/// Mean of the largest of n magnitudes of standard normal numbers, by the extreme-value limit for 2n numbers.
double expected_absmax(int n) {
  const double log_count = num::log(2.0 * n);
  const double b = std::sqrt(2.0 * log_count);
  return b - (num::log(log_count) + 2.5310242469692907) / (2.0 * b) + 0.5772156649015329 / b;  // ln 4 pi, Euler's constant
}

std::vector<std::byte> bytes_of_values(const void* data, std::size_t size) {
  std::vector<std::byte> bytes(size);
  if (size > 0) std::memcpy(bytes.data(), data, size);
  return bytes;
}

}  // namespace

int bins_of(Level level, int ordinal, int layers, Side side) {
  const bool key = side == Side::key;
  switch (level) {
    case Level::standard:
      if (layers < 10) return 32;
      if (layers == 80) return ordinal < (key ? 40 : 20) ? 32 : 16;
      return ordinal < (key ? 10 : 2) ? 32 : 16;
    case Level::level1: return key ? (ordinal < 20 ? 16 : 12) : (ordinal < 2 ? 16 : 12);
    case Level::level2: return ordinal < (key ? 10 : 2) ? 32 : 16;
    case Level::level3: return 32;
  }
  return 32;
}

float delta_width(int ordinal, int layers) {
  const int third = 3 * ordinal / std::max(1, layers);
  return third == 0 ? 0.5F : third == 1 ? 1.0F : 1.5F;
}

std::uint8_t quantize(float x, float absmax, int half) {
  const auto middle = static_cast<float>(half);
  const float factor = middle / absmax;
  if (!num::is_finite(factor)) return static_cast<std::uint8_t>(half);
  return static_cast<std::uint8_t>(num::rint(x * factor + middle));
}

float dequantize(std::uint8_t code, float absmax, int half) {
  const auto middle = static_cast<float>(half);
  return (static_cast<float>(code) - middle) / middle * absmax;
}

FixedBytes fixed_bytes(const Layout& layout, std::int64_t tokens) {
  FixedBytes bytes;
  for_chunks(layout, tokens, [&](std::int64_t, std::int64_t n) {
    bytes.absmax += scales_of(layout, n) * kvatlas::bytes_of(layout.dtype);
    for (const Plane& p : planes_of(layout, n)) {
      bytes.cdf += std::int64_t{layout.channels} * (p.alphabet + 1) * 2;
      bytes.lengths += ceil_div(p.count, kSubChunk) * layout.channels * 4;
    }
  });
  return bytes;
}

std::int64_t expected_stream_bytes(const Layout& layout, std::int64_t tokens) {
  if (tokens == 0) return 0;
  const double absmax = expected_absmax(layout.channels);
  std::vector<std::vector<double>> shares;  // of each plane
  if (layout.codec == Codec::code) {
    const int half = half_range(layout.bins);
    shares = {code_shares(half / absmax, half)};
  } else {
    // An anchor's error is far below a bin, so a delta is the difference of two normal numbers.
    shares = {code_shares(kPaperHalf / absmax, kPaperHalf), code_shares(std::sqrt(2.0) / static_cast<double>(layout.width), kPaperHalf)};
  }
  double bits = 0.0, chunk_bits = 0.0;
  std::int64_t priced = 0;  // chunks have one length, but for the last
  for_chunks(layout, tokens, [&](std::int64_t, std::int64_t n) {
    if (n != priced) {
      chunk_bits = 0.0;
      const auto planes = planes_of(layout, n);
      for (std::size_t p = 0; p < planes.size(); ++p)
        chunk_bits += static_cast<double>(planes[p].count) * shown_entropy(shares[p], planes[p].count) +
                      5.5 * static_cast<double>(ceil_div(planes[p].count, kSubChunk));
      priced = n;
    }
    bits += chunk_bits;
  });
  return static_cast<std::int64_t>(std::ceil(bits * layout.channels / 8.0));
}

void CodedSide::encode(View<const float> rows) {
  *this = CodedSide(layout_);
  tokens_ = rows.dim(0);
  const bool paper = layout_.codec == Codec::paper;
  const int half = paper ? kPaperHalf : half_range(layout_.bins);
  for_chunks(layout_, tokens_, [&](std::int64_t first, std::int64_t n) {
    const std::size_t scale0 = absmax_.size();
    for (std::int64_t t = 0; t < n; t += paper ? kGroup : 1) {
      float absmax = 0;
      for (const float x : rows.row(first + t)) absmax = num::max(absmax, std::fabs(x));
      absmax_.push_back(absmax);
    }
    const auto planes = planes_of(layout_, n);
    const std::size_t table0 = tables_.size();
    std::vector<std::vector<std::uint8_t>> symbols;  // plane by plane: [channel, count]
    std::size_t entries = 0;
    for (const Plane& p : planes) {
      symbols.emplace_back(static_cast<std::size_t>(p.count * layout_.channels));
      entries += static_cast<std::size_t>(layout_.channels) * static_cast<std::size_t>(p.alphabet + 1);
    }
    tables_.resize(table0 + entries);
    for (int c = 0; c < layout_.channels; ++c) {
      std::array<std::size_t, 2> next{};
      for (std::size_t p = 0; p < planes.size(); ++p) next[p] = static_cast<std::size_t>(c * planes[p].count);
      float anchor = 0;
      for (std::int64_t t = 0; t < n; ++t) {
        const float x = rows(first + t, c);
        if (paper && t % kGroup != 0) {
          const float code = num::clamp(num::rint((x - anchor) / layout_.width), -kPaperHalf, kPaperHalf);
          symbols[1][next[1]++] = static_cast<std::uint8_t>(static_cast<int>(code) + kPaperHalf);
          continue;
        }
        const float absmax = absmax_[scale0 + static_cast<std::size_t>(paper ? t / kGroup : t)];
        const std::uint8_t code = quantize(x, absmax, half);
        symbols[0][next[0]++] = code;
        if (paper) anchor = num::round_to(layout_.dtype, dequantize(code, absmax, half));
      }
    }
    std::size_t table = table0;
    for (std::size_t p = 0; p < planes.size(); ++p) {
      const auto width = static_cast<std::size_t>(planes[p].alphabet + 1), count = static_cast<std::size_t>(planes[p].count);
      const auto channels = static_cast<std::size_t>(layout_.channels);
      for (std::size_t c = 0; c < channels; ++c)
        coder::fill_table(std::span(symbols[p]).subspan(c * count, count), std::span(tables_).subspan(table + c * width, width));
      for (std::size_t sub = 0; sub < count; sub += kSubChunk)
        for (std::size_t c = 0; c < channels; ++c)
          lengths_.push_back(static_cast<std::int32_t>(
              coder::encode(std::span(symbols[p]).subspan(c * count + sub, std::min<std::size_t>(kSubChunk, count - sub)),
                            std::span(tables_).subspan(table + c * width, width), streams_)));
      table += channels * width;
    }
  });
}

void CodedSide::decode(int first_channel, View<float> out) const {
  const bool paper = layout_.codec == Codec::paper;
  const int half = paper ? kPaperHalf : half_range(layout_.bins);
  const auto channels = static_cast<std::size_t>(layout_.channels);
  std::size_t scale = 0, table = 0, length = 0, stream = 0;
  std::array<std::vector<std::uint8_t>, 2> symbols;  // plane by plane: [channel of out, count]
  for_chunks(layout_, tokens_, [&](std::int64_t first, std::int64_t n) {
    const auto planes = planes_of(layout_, n);
    for (std::size_t p = 0; p < planes.size(); ++p) {
      const auto width = static_cast<std::size_t>(planes[p].alphabet + 1), count = static_cast<std::size_t>(planes[p].count);
      symbols[p].resize(count * static_cast<std::size_t>(out.dim(1)));
      for (std::size_t sub = 0; sub < count; sub += kSubChunk)
        for (std::size_t c = 0; c < channels; ++c) {
          const auto size = static_cast<std::size_t>(lengths_[length++]);
          if (c >= static_cast<std::size_t>(first_channel) && c < static_cast<std::size_t>(first_channel + out.dim(1))) {
            const std::size_t at = c - static_cast<std::size_t>(first_channel);
            coder::decode(std::span(streams_).subspan(stream, size), std::span(tables_).subspan(table + c * width, width),
                          std::span(symbols[p]).subspan(at * count + sub, std::min<std::size_t>(kSubChunk, count - sub)));
          }
          stream += size;
        }
      table += channels * width;
    }
    for (std::int64_t c = 0; c < out.dim(1); ++c) {
      std::array<std::size_t, 2> next{};
      for (std::size_t p = 0; p < planes.size(); ++p) next[p] = static_cast<std::size_t>(c * planes[p].count);
      float anchor = 0;
      for (std::int64_t t = 0; t < n; ++t) {
        if (paper && t % kGroup != 0) {
          const auto code = static_cast<float>(static_cast<int>(symbols[1][next[1]++]) - kPaperHalf);
          out(first + t, c) = num::round_to(layout_.dtype, anchor + code * layout_.width);
          continue;
        }
        const float absmax = absmax_[scale + static_cast<std::size_t>(paper ? t / kGroup : t)];
        anchor = num::round_to(layout_.dtype, dequantize(symbols[0][next[0]++], absmax, half));
        out(first + t, c) = anchor;
      }
    }
    scale += static_cast<std::size_t>(scales_of(layout_, n));
  });
}

void CodedSide::buffers(const std::string& prefix, Side side, std::vector<NamedBuffer>& out) const {
  std::vector<std::byte> scales(absmax_.size() * static_cast<std::size_t>(kvatlas::bytes_of(layout_.dtype)));
  num::store(layout_.dtype, absmax_, scales);
  out.push_back({.name = prefix + "streams", .component = "streams", .side = side, .scope = Scope::group, .bytes = streams_});
  out.push_back({.name = prefix + "cdf", .component = "cdf", .side = side, .scope = Scope::group, .bytes = bytes_of_values(tables_.data(), tables_.size() * 2)});
  out.push_back({.name = prefix + "lengths", .component = "lengths", .side = side, .scope = Scope::group,
                 .bytes = bytes_of_values(lengths_.data(), lengths_.size() * 4)});
  out.push_back({.name = prefix + "absmax", .component = "absmax", .side = side, .scope = Scope::token, .bytes = std::move(scales)});
}

void CodedSide::load(const std::string& prefix, std::int64_t tokens, std::span<const NamedBuffer> saved) {
  const FixedBytes sizes = fixed_bytes(layout_, tokens);
  const auto take = [&](const char* name, std::int64_t size) -> const std::vector<std::byte>& {
    const NamedBuffer& b = find_buffer(saved, prefix + name);
    if (size >= 0 && static_cast<std::int64_t>(b.bytes.size()) != size)
      throw InvalidArgument(cat("buffer ", b.name, " has ", b.bytes.size(), " bytes, must be ", size, " for ", tokens, " tokens"));
    return b.bytes;
  };
  CodedSide loaded(layout_);
  loaded.tokens_ = tokens;
  loaded.streams_ = take("streams", -1);
  const auto &cdf = take("cdf", sizes.cdf), &lengths = take("lengths", sizes.lengths), &scales = take("absmax", sizes.absmax);
  loaded.tables_.resize(cdf.size() / 2);
  loaded.lengths_.resize(lengths.size() / 4);
  loaded.absmax_.resize(scales.size() / static_cast<std::size_t>(kvatlas::bytes_of(layout_.dtype)));
  if (!cdf.empty()) std::memcpy(loaded.tables_.data(), cdf.data(), cdf.size());
  if (!lengths.empty()) std::memcpy(loaded.lengths_.data(), lengths.data(), lengths.size());
  num::load(layout_.dtype, scales, loaded.absmax_);
  std::int64_t sum = 0;
  for (const std::int32_t size : loaded.lengths_) {
    if (size < 1) throw InvalidArgument(cat("buffer ", prefix, "lengths holds ", size, ", a stream has at least 1 byte"));
    sum += size;
  }
  if (sum != loaded.stream_bytes())
    throw InvalidArgument(cat("buffer ", prefix, "streams has ", loaded.stream_bytes(), " bytes, the lengths say ", sum));
  for (const float a : loaded.absmax_)
    if (!num::is_finite(a) || std::signbit(a)) throw InvalidArgument(cat("buffer ", prefix, "absmax holds ", a, ", must be finite and not negative"));
  std::size_t table = 0;
  for_chunks(layout_, tokens, [&](std::int64_t, std::int64_t n) {
    for (const Plane& p : planes_of(layout_, n))
      for (int c = 0; c < layout_.channels; ++c, table += static_cast<std::size_t>(p.alphabet + 1))
        if (!coder::is_table(std::span(loaded.tables_).subspan(table, static_cast<std::size_t>(p.alphabet + 1))))
          throw InvalidArgument(cat("buffer ", prefix, "cdf holds a table that does not rise from 0 to 65535"));
  });
  *this = std::move(loaded);
}

}  // namespace kvatlas::cachegen
