// cachegen (codec=code) against the official code: scales, tables, lengths and coded bytes.
#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "reference/coding/cachegen/codec.hpp"
#include "reference/primitives/arithmetic_coder.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("cachegen golden: scales, symbols, tables, lengths and every coded byte are the official ones", "[golden]") {
  int cases = 0, nan_tokens = 0;
  for (const GoldenCase& golden : golden_cases("cachegen")) {
    if (!golden.has("kv")) continue;
    ++cases;
    CAPTURE(golden.name());
    const auto layers = golden.parameter<std::int64_t>("layers"), tokens = golden.parameter<std::int64_t>("tokens");
    const auto channels = golden.parameter<std::int64_t>("kv_heads") * golden.parameter<std::int64_t>("head_dim");
    const auto key_bins = golden.parameter<std::vector<int>>("key_bins_per_layer"), value_bins = golden.parameter<std::vector<int>>("value_bins_per_layer");
    const int table_bins = std::max(*std::max_element(key_bins.begin(), key_bins.end()), *std::max_element(value_bins.begin(), value_bins.end()));
    const NamedTensor kv = golden.floats("kv");
    const View<const float> rows = view_of(kv, {layers, 2, tokens, channels});
    const std::int64_t sub_chunks = ceil_div(tokens, cachegen::kSubChunk);
    std::vector<std::int64_t> tables, symbols;
    std::vector<std::vector<std::int64_t>> bytes(static_cast<std::size_t>(sub_chunks)), lengths(static_cast<std::size_t>(sub_chunks));
    for (const int side : {0, 1}) {
      std::vector<float> scales;
      for (std::int64_t l = 0; l < layers; ++l) {
        const int bins = (side == 0 ? key_bins : value_bins)[static_cast<std::size_t>(l)];
        cachegen::CodedSide coded({.channels = static_cast<int>(channels), .bins = bins, .table_bins = table_bins, .dtype = Dtype::f32, .chunk = tokens});
        coded.encode(rows[l][side]);
        scales.insert(scales.end(), coded.absmax().begin(), coded.absmax().end());
        // The official code divides by the scale of an all-zero token, and the conversion of NaN leaves code 0; ours is the
        // code of zero. Its tables and bytes are therefore made here from the official symbols, by the same coder.
        const int half = cachegen::half_range(bins);
        bool nan_token = false;
        std::vector<std::uint8_t> theirs;  // [channel, token]
        for (std::int64_t c = 0; c < channels; ++c)
          for (std::int64_t t = 0; t < tokens; ++t) {
            const float absmax = coded.absmax()[static_cast<std::size_t>(t)];
            nan_token = nan_token || absmax == 0;
            theirs.push_back(absmax == 0 ? std::uint8_t{0} : cachegen::quantize(rows[l](side, t, c), absmax, half));
          }
        std::vector<std::uint16_t> their_tables(static_cast<std::size_t>(channels * (table_bins + 1)));
        std::vector<std::byte> their_bytes;
        std::vector<std::int32_t> their_lengths;
        for (std::int64_t first = 0; first < tokens; first += cachegen::kSubChunk)
          for (std::int64_t c = 0; c < channels; ++c) {
            const std::span<std::uint16_t> table = std::span(their_tables).subspan(static_cast<std::size_t>(c * (table_bins + 1)), static_cast<std::size_t>(table_bins + 1));
            const std::span<const std::uint8_t> channel = std::span(theirs).subspan(static_cast<std::size_t>(c * tokens), static_cast<std::size_t>(tokens));
            if (first == 0) coder::fill_table(channel, table);
            const auto n = static_cast<std::size_t>(std::min(cachegen::kSubChunk, tokens - first));
            their_lengths.push_back(static_cast<std::int32_t>(coder::encode(channel.subspan(static_cast<std::size_t>(first), n), table, their_bytes)));
          }
        if (!nan_token) {
          REQUIRE(coded.tables() == their_tables);
          REQUIRE(coded.lengths() == their_lengths);
          REQUIRE(coded.streams() == their_bytes);
        }
        nan_tokens += nan_token ? 1 : 0;
        tables.insert(tables.end(), their_tables.begin(), their_tables.end());
        std::size_t stream = 0;
        for (std::int64_t s = 0; s < sub_chunks; ++s)
          for (std::int64_t c = 0; c < channels; ++c) {
            const std::int32_t length = their_lengths[static_cast<std::size_t>(s * channels + c)];
            lengths[static_cast<std::size_t>(s)].push_back(length);
            for (std::int32_t i = 0; i < length; ++i) bytes[static_cast<std::size_t>(s)].push_back(static_cast<std::int64_t>(their_bytes[stream++]));
          }
        // Decoding is the inverse of coding and then the sheet's dequantization of the same symbols.
        Array decoded({tokens, channels});
        coded.decode(0, decoded.view());
        for (std::int64_t t = 0; t < tokens; ++t) {
          const float absmax = coded.absmax()[static_cast<std::size_t>(t)];
          for (std::int64_t c = 0; c < channels; ++c) {
            const std::uint8_t symbol = cachegen::quantize(rows[l](side, t, c), absmax, half);
            symbols.push_back(absmax == 0 ? 0 : symbol);
            REQUIRE(num::bits_of(decoded.view()(t, c)) == num::bits_of(cachegen::dequantize(symbol, absmax, half)));
          }
        }
      }
      check_exact(golden, side == 0 ? "key_max" : "value_max", scales);
    }
    check_exact(golden, "cdf", tables);
    if (golden.has("symbols")) check_exact(golden, "symbols", symbols);
    for (std::int64_t s = 0; s < sub_chunks; ++s) {
      check_exact(golden, cat("bytes_", s), bytes[static_cast<std::size_t>(s)]);
      check_exact(golden, cat("lengths_", s), lengths[static_cast<std::size_t>(s)]);
    }
  }
  REQUIRE(cases >= 4);
  REQUIRE(nan_tokens >= 1);
}

TEST_CASE("cachegen golden: the older scalar quantizer rounds before the offset, so only halves differ from ours", "[golden]") {
  for (const GoldenCase& golden : golden_cases("cachegen")) {
    if (!golden.has("x")) continue;
    CAPTURE(golden.name());
    const auto tokens = golden.parameter<std::int64_t>("tokens"), channels = golden.parameter<std::int64_t>("channels");
    const int half = cachegen::half_range(golden.parameter<int>("bins"));
    const NamedTensor x = golden.floats("x");
    std::vector<float> scales;
    std::vector<std::int64_t> codes;
    for (std::int64_t t = 0; t < tokens; ++t) {
      float absmax = 0;
      for (const float f : view_of(x, {tokens, channels}).row(t)) absmax = num::max(absmax, std::fabs(f));
      scales.push_back(absmax);
      for (const float f : view_of(x, {tokens, channels}).row(t)) {
        const float scaled = f * (static_cast<float>(half) / absmax);
        codes.push_back(static_cast<std::int64_t>(num::rint(scaled)));
        // At halves the orders differ: -3.5 becomes -4 here and the code of -3 there.
        if (std::fabs(scaled - std::trunc(scaled)) != 0.5F) REQUIRE(codes.back() + half == cachegen::quantize(f, absmax, half));
      }
    }
    check_exact(golden, "max", scales);
    check_exact(golden, "codes", codes);
  }
}
