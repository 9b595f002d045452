// What a model caches: classes of layers that store the same kind of row, and which layer reads whose rows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/units.hpp"

namespace kvatlas {

/// What one cached row of a layer is.
enum class RowKind : std::uint8_t {
  kv,         // a key and a value for each kv head
  latent,     // one shared vector; the value is a prefix of the key (MLA)
  pooled,     // one key and value for `pool` tokens
  state,      // a recurrent state of fixed size, no rows
  none,       // nothing cached
};

enum class Dtype : std::uint8_t { f32, bf16, f16 };
constexpr int bytes_of(Dtype t) { return t == Dtype::f32 ? 4 : 2; }
constexpr const char* name_of(Dtype t) { return t == Dtype::f32 ? "f32" : t == Dtype::bf16 ? "bf16" : "fp16"; }

enum class RopeScaling : std::uint8_t { none, linear, ntk, yarn, llama3 };
enum class RopeLayout : std::uint8_t { half_split, interleaved };

/// Rotary embedding of one layer class. Pairs rotate by position * theta_i; see core/rope.hpp for the tables.
struct RopeSpec {
  double base = 10000.0;
  int rotary_dim = 0;         // channels that rotate; 0 = no rotary embedding
  int first_channel = 0;      // rotation starts here (MLA keeps its rotary part behind the latent)
  RopeLayout layout = RopeLayout::half_split;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;        // s of every scaling scheme
  double original_context = 0.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  bool yarn_truncate = true;                             // floor/ceil of the ramp's ends
  double attention_factor = 0.0;                         // multiplies cos and sin; 0 = by the scheme's own rule
  friend bool operator==(const RopeSpec&, const RopeSpec&) = default;
};

/// Layers that cache the same kind of row with the same widths.
struct LayerClass {
  RowKind kind = RowKind::kv;
  int q_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;              // channels of a key as it is scored; for `latent` the whole row
  int v_dim = 0;              // channels of a value; for `latent` a prefix of the row
  Tokens window{0};           // newest tokens that a query sees; 0 = all
  int pool = 1;               // tokens of one `pooled` row
  int index_dim = 0;          // width of a learned index row per token beside the cache; 0 = none
  double index_bytes = 0.0;   // bytes of one index row
  int index_top_k = 0;        // tokens that the index selects; 0 = none
  Bytes state{0};             // `state`: bytes per layer and sequence
  double score_scale = 0.0;     // factor on q.k; 0 = 1/sqrt(k_dim) (MLA scales by the unabsorbed width)
  bool attention_sink = false;  // a learned logit joins the softmax (gpt-oss)
  bool alibi = false;           // linear position bias instead of rotary embedding
  RopeSpec rope{};
  std::vector<int> layers{};    // indices of the layers of this class that own rows, ascending
  std::vector<int> readers{};   // layers that read rows of an owner of this class instead of their own (cross-layer sharing)

  int count() const { return static_cast<int>(layers.size()); }
  int q_per_kv() const { return kv_heads == 0 ? 0 : q_heads / kv_heads; }
  /// Values stored for one token in one layer (key and value; a latent row counts once).
  std::int64_t values_per_token() const {
    if (kind == RowKind::kv || kind == RowKind::pooled) return std::int64_t{kv_heads} * (k_dim + v_dim);
    return kind == RowKind::latent ? k_dim : 0;
  }
  /// Tokens whose rows this class holds and reads when the sequence has `context` tokens.
  Tokens visible(Tokens context) const { return window.value > 0 && window < context ? window : context; }
  friend bool operator==(const LayerClass&, const LayerClass&) = default;
};

/// The cache of one model under no compression: its layer classes and the dtype of a stored value.
struct CacheShape {
  std::vector<LayerClass> classes;
  Dtype dtype = Dtype::bf16;

  int layers() const;                                // layers that own rows, all classes together
  const LayerClass& class_of(int layer) const;       // throws InvalidArgument for a layer without rows
  friend bool operator==(const CacheShape&, const CacheShape&) = default;
};

/// A model of `layers` equal attention layers; the shape of most tests and of most decoders.
CacheShape uniform_shape(int layers, int q_heads, int kv_heads, int head_dim, Dtype dtype = Dtype::bf16,
                         RopeSpec rope = {});

/// One sentence when the shape cannot exist (zero widths, q_heads not a multiple of kv_heads, a layer in two classes).
std::optional<std::string> why_not(const CacheShape& shape);

/// The part of `shape` that one of `ranks` tensor-parallel ranks holds: heads are split, kv heads are replicated once
/// there are fewer of them than ranks, latent rows stay whole on every rank.
CacheShape shape_of_rank(const CacheShape& shape, int ranks);

/// The sub-shape of the layers in `keep`; classes that lose all layers vanish. The readers of a class stay in the part that
/// keeps its first owner, so that parts which cover a class count them once.
CacheShape shape_of_layers(const CacheShape& shape, const std::vector<int>& keep);

/// Bytes of the uncompressed cache of `context` tokens: every owner's rows, windows cut, states counted.
Bytes dense_bytes(const CacheShape& shape, Tokens context);

}  // namespace kvatlas
