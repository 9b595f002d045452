// ZipCache's compressed tokens of one layer: a salient and a regular set, each with its own code width.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "reference/cache.hpp"
#include "reference/primitives/group_quantizer.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas::zipcache_sets {

struct Settings {
  int kv_heads = 1, k_dim = 0, v_dim = 0;
  int k_bits[2] = {4, 2}, v_bits[2] = {4, 2};  // salient, regular
  MetaType meta = MetaType::f16;
  int k_width() const { return kv_heads * k_dim; }
  int v_width() const { return kv_heads * v_dim; }
};

/// Codes of one set. Row i holds the i-th token of the set of each head, so heads contribute different tokens to a row; a
/// row's codes are planar over the channels of all heads.
struct Set {
  std::int64_t rows = 0;
  std::vector<std::byte> k_codes, v_codes;
  std::vector<std::byte> k_minima, k_steps;  // one a key channel, over the set's tokens
  std::vector<std::byte> v_minima, v_steps;  // one a row of values, over all heads' channels
};

/// All compressed tokens of a layer.
struct CodedTokens {
  std::int64_t count = 0;
  std::vector<std::vector<std::uint8_t>> salient;  // per head and token: 1 = salient
  std::vector<std::byte> v_factors;                // root of the largest magnitude of each value channel; 1 for a channel of zeros
  Set sets[2];                                     // salient, regular
};

/// Codes keys and values [kv_heads, n, dim]; salient [kv_heads][n], equally many in every head.
CodedTokens compress(const Settings& s, View<const float> k, View<const float> v, std::vector<std::vector<std::uint8_t>> salient);
/// All tokens of one head, in the order of the text.
void read_keys(const Settings& s, const CodedTokens& t, int head, View<float> out);
void read_values(const Settings& s, const CodedTokens& t, int head, View<float> out);

void buffers(const CodedTokens& t, const std::string& prefix, std::vector<NamedBuffer>& out);
/// throws InvalidArgument for buffers that cannot be one cache's
CodedTokens load(const Settings& s, const std::string& prefix, std::span<const NamedBuffer> saved);

/// The `share` of n tokens with the lowest saliency, int(share * n) of them; of equal ones the earlier token.
Slots regular_tokens(std::span<const float> saliency, double share);

}  // namespace kvatlas::zipcache_sets
