#include "reference/quantization/zipcache/sets.hpp"

#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/primitives/numbers.hpp"

namespace kvatlas::zipcache_sets {

namespace {

Dtype meta_dtype(const Settings& s) { return s.meta == MetaType::f32 ? Dtype::f32 : Dtype::f16; }

GroupQuantizer quantizer(const Settings& s, int bits) { return {.bits = bits, .work = Dtype::f32, .meta = s.meta}; }

std::uint32_t planar_code(std::span<const std::byte> row, std::int64_t i, int bits) {
  const auto plane = static_cast<std::int64_t>(row.size());
  return num::field_of_word(std::to_integer<std::uint32_t>(row[static_cast<std::size_t>(i % plane)]), static_cast<int>(i / plane), bits);
}

std::span<const std::byte> row_of(std::span<const std::byte> codes, std::int64_t row, int width, int bits) {
  const auto bytes = static_cast<std::size_t>(width * bits / 8);
  return codes.subspan(static_cast<std::size_t>(row) * bytes, bytes);
}

void add_row(std::vector<std::byte>& to, std::span<const std::uint8_t> codes, int bits) {
  const std::size_t at = to.size();
  to.resize(at + codes.size() * static_cast<std::size_t>(bits) / 8);
  if (bits == 8) std::ranges::transform(codes, to.begin() + static_cast<std::ptrdiff_t>(at), [](std::uint8_t c) { return static_cast<std::byte>(c); });
  else num::pack_planar(codes, bits, std::span(to).subspan(at));
}

/// Token of each row of a set in one head, ascending.
std::vector<std::int64_t> tokens_of(const CodedTokens& t, int head, int set) {
  std::vector<std::int64_t> out;
  const auto& mask = t.salient[static_cast<std::size_t>(head)];
  for (std::size_t i = 0; i < mask.size(); ++i)
    if ((mask[i] != 0) == (set == 0)) out.push_back(static_cast<std::int64_t>(i));
  return out;
}

}  // namespace

Slots regular_tokens(std::span<const float> saliency, double share) {
  std::vector<float> negated(saliency.begin(), saliency.end());
  for (float& f : negated) f = -f;
  return top_k(negated, static_cast<std::int64_t>(share * static_cast<double>(saliency.size())));
}

CodedTokens compress(const Settings& s, View<const float> k, View<const float> v, std::vector<std::vector<std::uint8_t>> salient) {
  CodedTokens t{.count = k.dim(1), .salient = std::move(salient), .v_factors = {}, .sets = {}};
  std::vector<float> factors;
  for (std::int64_t h = 0; h < s.kv_heads; ++h)
    for (std::int64_t c = 0; c < s.v_dim; ++c) {
      float largest = 0;
      for (std::int64_t i = 0; i < t.count; ++i) largest = num::max(largest, std::fabs(v(h, i, c)));
      const float factor = round_to(s.meta, std::sqrt(largest));
      factors.push_back(factor == 0 || !num::is_finite(factor) ? 1.0F : factor);
      append_float(t.v_factors, meta_dtype(s), factors.back());
    }
  for (int set = 0; set < 2; ++set) {
    Set& to = t.sets[set];
    std::vector<std::vector<std::int64_t>> tokens;
    for (int h = 0; h < s.kv_heads; ++h) tokens.push_back(tokens_of(t, h, set));
    to.rows = static_cast<std::int64_t>(tokens.front().size());
    for (const auto& of_head : tokens) KV_ASSERT(static_cast<std::int64_t>(of_head.size()) == to.rows, "heads have equally many salient tokens");
    if (to.rows == 0) continue;
    const auto n = static_cast<std::size_t>(to.rows);
    const GroupQuantizer key = quantizer(s, s.k_bits[set]), value = quantizer(s, s.v_bits[set]);
    std::vector<std::vector<std::uint8_t>> codes(n, std::vector<std::uint8_t>(static_cast<std::size_t>(s.k_width())));
    std::vector<float> x(n);
    std::vector<std::uint8_t> of_channel(n);
    for (int h = 0; h < s.kv_heads; ++h)
      for (int c = 0; c < s.k_dim; ++c) {
        for (std::size_t i = 0; i < n; ++i) x[i] = k(h, tokens[static_cast<std::size_t>(h)][i], c);
        const GroupQuantizer::Meta m = key.encode(x, of_channel);
        append_float(to.k_minima, meta_dtype(s), m.zero);
        append_float(to.k_steps, meta_dtype(s), m.scale);
        for (std::size_t i = 0; i < n; ++i) codes[i][static_cast<std::size_t>(h * s.k_dim + c)] = of_channel[i];
      }
    for (const auto& row : codes) add_row(to.k_codes, row, s.k_bits[set]);
    std::vector<float> row(static_cast<std::size_t>(s.v_width()));
    std::vector<std::uint8_t> row_codes(row.size());
    for (std::size_t i = 0; i < n; ++i) {
      for (int h = 0; h < s.kv_heads; ++h)
        for (int c = 0; c < s.v_dim; ++c) {
          const auto at = static_cast<std::size_t>(h * s.v_dim + c);
          row[at] = v(h, tokens[static_cast<std::size_t>(h)][i], c) / factors[at];
        }
      const GroupQuantizer::Meta m = value.encode(row, row_codes);
      append_float(to.v_minima, meta_dtype(s), m.zero);
      append_float(to.v_steps, meta_dtype(s), m.scale);
      add_row(to.v_codes, row_codes, s.v_bits[set]);
    }
  }
  return t;
}

void read_keys(const Settings& s, const CodedTokens& t, int head, View<float> out) {
  for (int set = 0; set < 2; ++set) {
    const Set& from = t.sets[set];
    const GroupQuantizer q = quantizer(s, s.k_bits[set]);
    const std::vector<std::int64_t> tokens = tokens_of(t, head, set);
    for (std::int64_t i = 0; i < from.rows; ++i) {
      const auto row = row_of(from.k_codes, i, s.k_width(), s.k_bits[set]);
      for (int c = 0; c < s.k_dim; ++c) {
        const int at = head * s.k_dim + c;
        const GroupQuantizer::Meta m{.scale = float_at(from.k_steps, meta_dtype(s), at), .zero = float_at(from.k_minima, meta_dtype(s), at)};
        out(tokens[static_cast<std::size_t>(i)], c) = q.decode(planar_code(row, at, s.k_bits[set]), m);
      }
    }
  }
}

void read_values(const Settings& s, const CodedTokens& t, int head, View<float> out) {
  for (int set = 0; set < 2; ++set) {
    const Set& from = t.sets[set];
    const GroupQuantizer q = quantizer(s, s.v_bits[set]);
    const std::vector<std::int64_t> tokens = tokens_of(t, head, set);
    for (std::int64_t i = 0; i < from.rows; ++i) {
      const auto row = row_of(from.v_codes, i, s.v_width(), s.v_bits[set]);
      const GroupQuantizer::Meta m{.scale = float_at(from.v_steps, meta_dtype(s), i), .zero = float_at(from.v_minima, meta_dtype(s), i)};
      for (int c = 0; c < s.v_dim; ++c) {
        const int at = head * s.v_dim + c;
        out(tokens[static_cast<std::size_t>(i)], c) = q.decode(planar_code(row, at, s.v_bits[set]), m) * float_at(t.v_factors, meta_dtype(s), at);
      }
    }
  }
}

void buffers(const CodedTokens& t, const std::string& prefix, std::vector<NamedBuffer>& out) {
  const auto add = [&](const char* component, Side side, Scope scope, const std::string& name, std::vector<std::byte> bytes) {
    out.push_back({.name = prefix + name, .component = component, .side = side, .scope = scope, .bytes = std::move(bytes)});
  };
  for (std::size_t h = 0; h < t.salient.size(); ++h) {
    std::vector<std::byte> bits(static_cast<std::size_t>(ceil_div(t.count, 8)));
    for (std::size_t i = 0; i < t.salient[h].size(); ++i)
      if (t.salient[h][i] != 0) bits[i / 8] |= static_cast<std::byte>(1U << (i % 8));
    add("salient", Side::both, Scope::token, cat("salient/head", h), std::move(bits));
  }
  add("channels", Side::value, Scope::layer, "v_factors", t.v_factors);
  for (int set = 0; set < 2; ++set) {
    const char* name = set == 0 ? "salient_" : "regular_";
    const Set& from = t.sets[set];
    add("codes", Side::key, Scope::token, cat(name, "k_codes"), from.k_codes);
    add("codes", Side::value, Scope::token, cat(name, "v_codes"), from.v_codes);
    add("channels", Side::key, Scope::layer, cat(name, "k_minima"), from.k_minima);
    add("channels", Side::key, Scope::layer, cat(name, "k_steps"), from.k_steps);
    add("rows", Side::value, Scope::token, cat(name, "v_minima"), from.v_minima);
    add("rows", Side::value, Scope::token, cat(name, "v_steps"), from.v_steps);
  }
}

CodedTokens load(const Settings& s, const std::string& prefix, std::span<const NamedBuffer> saved) {
  const auto find = [&](const std::string& name) -> const std::vector<std::byte>& { return find_buffer(saved, prefix + name).bytes; };
  const auto require = [&](const std::string& name, std::int64_t bytes) -> const std::vector<std::byte>& {
    if (static_cast<std::int64_t>(find(name).size()) != bytes)
      throw InvalidArgument(cat("buffer ", prefix, name, " has ", find(name).size(), " bytes, must have ", bytes));
    return find(name);
  };
  const auto checked = [&](const std::string& name, std::int64_t numbers, bool sign) -> const std::vector<std::byte>& {
    const auto& bytes = require(name, numbers * bytes_of(s.meta));
    for (std::int64_t i = 0; i < numbers; ++i) {
      const float x = float_at(bytes, meta_dtype(s), i);
      if (!num::is_finite(x) || (!sign && x < 0)) throw InvalidArgument(cat("buffer ", prefix, name, " holds ", x, ", must be finite", sign ? "" : " and not negative"));
    }
    return bytes;
  };
  CodedTokens t;
  for (int set = 0; set < 2; ++set) {
    t.sets[set].rows = static_cast<std::int64_t>(find(cat(set == 0 ? "salient_" : "regular_", "k_codes")).size()) * 8 / (s.k_width() * s.k_bits[set]);
    t.count += t.sets[set].rows;
  }
  for (int h = 0; h < s.kv_heads; ++h) {
    const auto& bits = require(cat("salient/head", h), ceil_div(t.count, 8));
    std::vector<std::uint8_t> mask;
    std::int64_t ones = 0, all = 0;
    for (std::size_t b = 0; b < bits.size(); ++b)
      for (int i = 0; i < 8; ++i) all += (std::to_integer<int>(bits[b]) >> i) & 1;
    for (std::int64_t i = 0; i < t.count; ++i) {
      mask.push_back(static_cast<std::uint8_t>((std::to_integer<int>(bits[static_cast<std::size_t>(i / 8)]) >> (i % 8)) & 1));
      ones += mask.back();
    }
    if (ones != t.sets[0].rows || all != ones)
      throw InvalidArgument(cat("buffer ", prefix, "salient/head", h, " marks ", all, " tokens, must mark ", t.sets[0].rows, " of ", t.count));
    t.salient.push_back(std::move(mask));
  }
  t.v_factors = checked("v_factors", t.count > 0 ? s.v_width() : 0, false);
  for (int set = 0; set < 2; ++set) {
    const char* name = set == 0 ? "salient_" : "regular_";
    Set& to = t.sets[set];
    const std::int64_t channels = to.rows > 0 ? s.k_width() : 0;
    to.k_codes = require(cat(name, "k_codes"), to.rows * s.k_width() * s.k_bits[set] / 8);
    to.v_codes = require(cat(name, "v_codes"), to.rows * s.v_width() * s.v_bits[set] / 8);
    to.k_minima = checked(cat(name, "k_minima"), channels, true);
    to.k_steps = checked(cat(name, "k_steps"), channels, false);
    to.v_minima = checked(cat(name, "v_minima"), to.rows, true);
    to.v_steps = checked(cat(name, "v_steps"), to.rows, false);
  }
  return t;
}

}  // namespace kvatlas::zipcache_sets
