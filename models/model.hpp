// A transformer as a descriptor: what it caches, which matrices a token meets, and where the figures come from.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer_graph.hpp"
#include "core/units.hpp"

namespace kvatlas::models {

/// What a matrix is for. `state` is a projection of a recurrent layer (linear attention).
enum class Role : std::uint8_t { attention, ffn, expert, shared_expert, router, embedding, lm_head, state };
inline constexpr int kRoles = 8;
std::string_view name_of(Role role);

/// `count` equal matrices of n outputs and k inputs; a token multiplies with `active` of them.
struct MatMul {
  std::string name;
  std::int64_t n = 0;
  std::int64_t k = 0;
  int count = 1;
  int active = 1;
  Role role = Role::attention;
  bool bias = false;    // one more value for each output
  bool shared = false;  // the weights of another matrix (a tied lm_head): multiplied, not stored again
  std::int64_t values() const { return shared ? 0 : count * (n * k + (bias ? n : 0)); }          // stored
  std::int64_t active_values() const { return shared ? 0 : active * (n * k + (bias ? n : 0)); }  // read for one token
  friend bool operator==(const MatMul&, const MatMul&) = default;
};

/// Weights that no matrix product reads: norms, convolution taps, sink logits, decays.
struct VectorWeights {
  std::string name;
  std::int64_t size = 0;
  friend bool operator==(const VectorWeights&, const VectorWeights&) = default;
};

/// Layers with equal weights. Layers of one group may cache different rows: windows cost no weights.
struct LayerGroup {
  std::vector<int> layers;  // ascending
  std::vector<MatMul> matrices;
  std::vector<VectorWeights> vectors;
  std::int64_t ffn_width = 0;     // of the dense FFN; 0 in a layer of experts
  int experts = 0;                // routed experts; 0 = dense FFN
  int active_experts = 0;         // routed experts that a token meets
  std::int64_t expert_width = 0;  // of one routed expert
  std::int64_t shared_width = 0;  // of all shared experts together; 0 = none
  int count() const { return static_cast<int>(layers.size()); }
  friend bool operator==(const LayerGroup&, const LayerGroup&) = default;
};

/// Stored bits of one weight, scales included.
struct WeightBits {
  std::array<double, kRoles> role{16, 16, 16, 16, 16, 16, 16, 16};
  double vectors = 16;
  double& operator[](Role r) { return role[static_cast<std::size_t>(r)]; }
  double operator[](Role r) const { return role[static_cast<std::size_t>(r)]; }
  friend bool operator==(const WeightBits&, const WeightBits&) = default;
};

/// A figure somebody else printed, to be compared with ours; `rounding` is the unit of its last digit (1 = exact).
struct PublishedFigure {
  std::int64_t value = 0;
  std::int64_t rounding = 1;
  std::string source;
};

struct Model {
  std::string slug;
  std::string name;
  std::string source;  // published file or paper that the descriptor's figures come from
  std::vector<std::string> aliases;
  std::string model_type;  // as the config names it
  CacheShape cache;
  std::int64_t hidden = 0;
  std::int64_t vocabulary = 0;
  std::optional<Tokens> trained_context;
  bool tied_embeddings = false;
  bool qkv_bias = false;
  bool qk_norm = false;            // keys and queries are normalised per head before RoPE
  double score_softcap = 0.0;      // scores pass cap * tanh(score / cap); 0 = not
  std::vector<LayerGroup> groups;  // every layer is in one
  std::vector<MatMul> ends;        // embedding and lm_head
  std::vector<VectorWeights> end_vectors;
  WeightBits native_bits;  // the form in which the weights are published
  std::optional<PublishedFigure> published_parameters;
  std::optional<PublishedFigure> published_active_parameters;
  std::optional<PublishedFigure> published_kv_bytes_per_token;
  std::optional<PublishedFigure> published_kv_bytes_per_token_fp8_latent;
  std::int64_t published_elsewhere = 0;  // of published_parameters: weights outside this text decoder (a vision tower)
  std::vector<std::string> warnings;     // what the import did not understand or had to assume
};

/// Transformer layers, with or without rows in the cache.
int layers(const Model& model);

/// Stored weights: matrices, biases, norms; a tied head counts once, multi-token-prediction layers are not part of it.
std::int64_t parameters(const Model& model);

/// Stored weights less the experts that a token does not meet. The embedding table counts whole.
std::int64_t active_parameters(const Model& model);

/// Bytes that one more token costs once every window is full: rows of all layers without a window, and index rows.
Bytes kv_bytes_per_token(const Model& model);

/// The same with latent rows in the 8-bit layout of FlashMLA: e4m3 latent, one fp32 scale for each 128 values, RoPE in
/// 16 bits. throws Unsupported when no layer keeps a latent row.
Bytes kv_bytes_per_token_fp8_latent(const Model& model);

/// Whether any layer keeps a latent row.
bool has_latent_rows(const Model& model);

/// Bytes of a sequence that do not grow: full windows and recurrent states.
Bytes fixed_cache_bytes(const Model& model);

/// Bytes of all weights at `bits`, each role rounded up to whole bytes.
Bytes weight_bytes(const Model& model, const WeightBits& bits);

}  // namespace kvatlas::models
