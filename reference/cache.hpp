// One sequence's cache under one method: what it stores, how it attends, and every byte of its state by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer_graph.hpp"
#include "core/ledger.hpp"
#include "core/view.hpp"

namespace kvatlas {

/// Which of the new tokens each new token sees; all earlier tokens of the cache are seen in every mode.
enum class MaskKind : std::uint8_t { causal, bidirectional, tree };
struct AttentionMask {
  MaskKind kind = MaskKind::causal;
  View<const std::uint8_t> tree{};  // tree: [n, n], row i marks the new tokens that token i sees (itself included)
  bool sees(std::int64_t query, std::int64_t key) const {
    if (kind == MaskKind::causal) return key <= query;
    return kind == MaskKind::bidirectional || tree(query, key) != 0;
  }
};

/// n new tokens of one layer: 1 = a decode step, more = a prompt chunk, a draft tree or a block.
struct StepInput {
  View<const float> q;  // [q_heads, n, k_dim], before RoPE
  View<const float> k;  // [kv_heads, n, k_dim], before RoPE
  View<const float> v;  // [kv_heads, n, v_dim]; empty for latent rows
  View<const std::int64_t> positions;  // [n], ascending
  AttentionMask mask{};
  View<const float> hidden{};  // [n, hidden]; only where the record's `needs` asks for it
  View<const float> sinks{};   // [q_heads] learned sink logits, natural units; only for classes with attention_sink
};

/// What a caller may know that no tensor tells.
enum class EventKind : std::uint8_t {
  prompt_length,  // before the first token: the prompt will hold `last` tokens
  span_over,      // the tokens at positions [first, last) have served: the method may let them go
  turn            // after the prompt: the tokens that follow are a prompt again, until end_prefill()
};
const char* name_of(EventKind kind);

/// Positions are those of the text, as forward() is given them, wherever the method has moved the tokens since.
struct CacheEvent {
  EventKind kind = EventKind::turn;
  std::int64_t first = 0, last = 0;
};

/// A piece of a cache's state. Components group buffers into ledger rows; names are unique within a cache.
struct NamedBuffer {
  std::string name;            // "layer3/k_codes"
  std::string_view component;  // ledger component, a literal
  Side side = Side::both;
  Scope scope = Scope::token;
  std::vector<std::byte> bytes;
};

/// Abstract cache of one sequence, all layers. Not thread-safe. After a refused call (exception at the door) the state
/// is as before.
class KvCache {
 public:
  virtual ~KvCache() = default;

  /// Stores n tokens in `layer`, attends, updates the method's state, in the method's own order.
  /// out  [q_heads, n, v_dim] f32
  /// throws InvalidArgument for a wrong shape, a layer without rows, NaN or infinity; Unsupported for a mask it lacks
  virtual void forward(int layer, const StepInput& step, View<float> out) = 0;

  /// The prompt is complete in all layers. Methods that select or quantize once do it here.
  virtual void end_prefill() {}

  /// Takes an event of the caller; a record lists those that its method has a rule for.
  /// returns  the position from which the caller must forward the text once more, where the event makes rows behind it stale
  /// throws   Unsupported for an event without a rule, InvalidArgument for one that cannot be; the state is as before then
  virtual std::optional<std::int64_t> notify(const CacheEvent& event);

  /// Forgets every token at index >= length (counted from the start of the sequence): speculation rolls back.
  /// throws Unsupported where the method cannot restore the earlier state
  virtual void crop(Tokens length);

  /// ALL state of the cache: what the ledger counts and what load() needs.
  virtual std::vector<NamedBuffer> buffers() const = 0;

  /// Replaces the state by saved buffers of a cache of the same method, parameters and shape.
  /// throws InvalidArgument when a buffer is missing, unknown or of an impossible size
  virtual void load(std::span<const NamedBuffer> saved) = 0;

  /// Counts that the ledger formula needs for data-dependent methods.
  virtual ContentCounts content_counts() const { return {}; }

  /// Tokens held for one kv head of one layer.
  virtual Tokens kept(int layer, int kv_head) const = 0;

  /// throws what crop(length) would throw; changes nothing. Who crops several caches asks all before the first one crops.
  virtual void check_crop(Tokens length) const;
};

/// The ledger as counted from live buffers.
Ledger count_ledger(std::span<const NamedBuffer> buffers);

/// Shared door check of forward(): shapes against the layer's class, finite values, ascending positions.
void check_step(const CacheShape& shape, int layer, const StepInput& step, const View<float>& out);

/// The saved buffer of this name; throws InvalidArgument when it is missing.
const NamedBuffer& find_buffer(std::span<const NamedBuffer> saved, std::string_view name);

}  // namespace kvatlas
