// The faces beside a one-sequence cache: one side of a cache, groups of sequences, block selection, speculation,
// weight conversion. A method offers those of its family (tests/conformance/required_faces.csv).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/code_format.hpp"
#include "core/io/tensor.hpp"
#include "reference/cache.hpp"

namespace kvatlas {

/// The keys or the values of one layer. Rows come after RoPE (keys) and rounded to the cache's dtype.
/// Methods whose keys and values are coded independently offer this face; K and V can then follow different methods.
class SideStore {
 public:
  virtual ~SideStore() = default;
  /// Keys alone: rows come, are kept and are read before RoPE; row i is at position i, and the cache rotates what it reads.
  virtual bool before_rope() const { return false; }
  /// Sees a step of its layer before the step's rows come: for stores that look at hidden states.
  virtual void observe(const StepInput&) {}
  /// Adds counts that only the content can tell, for formulas of data-dependent methods.
  virtual void count(ContentCounts&) const {}
  virtual void append(View<const float> rows) = 0;  // [kv_heads, n, dim]
  /// Called after the step's attention; `prompt_done` is false while the prompt is being processed.
  virtual void settle(bool prompt_done) = 0;
  virtual Tokens size() const = 0;
  /// Decoded rows [first, first + out.dim(0)) of one kv head.
  virtual void read(int kv_head, std::int64_t first, View<float> out) const = 0;  // [rows, dim]
  virtual void drop_front(Tokens count);  // windows; throws Unsupported unless rows are independent
  /// throws Unsupported where crop(length) would; changes nothing. A cache asks all its stores before the first one crops.
  virtual void check_crop(Tokens /*length*/) const {}
  virtual void crop(Tokens length) = 0;
  virtual void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const = 0;
  virtual void load(const std::string& prefix, std::span<const NamedBuffer> saved) = 0;
};

/// How one side of a class is stored at a given context; what a plan needs to know of it.
struct SideLayout {
  CodeFormat format{};   // of the coded rows
  Tokens plain{0};       // newest rows, kept in the cache's dtype
  Tokens flush{0};       // rows that are coded at once when the plain rows overflow; 0 = rows are coded as they come
};

/// Several sequences that share what they have in common.
class KvGroup {
 public:
  virtual ~KvGroup() = default;
  /// Adds a sequence that shares everything `parent` holds now; parent -1 starts an empty one. Returns its id.
  virtual int fork(int parent) = 0;
  /// One step of one layer for several sequences; steps[i] belongs to sequences[i].
  virtual void forward(int layer, std::span<const int> sequences, std::span<const StepInput> steps,
                       std::span<const View<float>> out) = 0;
  virtual void release(int sequence) = 0;  // frees what nobody shares
  virtual Tokens length(int sequence) const = 0;
  virtual std::vector<NamedBuffer> buffers() const = 0;
  virtual void load(std::span<const NamedBuffer> saved) = 0;
};

/// Which blocks of a prompt's attention are computed.
struct BlockMask {
  int block = 128;
  int q_heads = 0;
  std::int64_t q_blocks = 0, k_blocks = 0;
  std::vector<std::uint8_t> keep;  // [q_heads, q_blocks, k_blocks]
  bool at(int head, std::int64_t q_block, std::int64_t k_block) const {
    return keep[static_cast<std::size_t>((head * q_blocks + q_block) * k_blocks + k_block)] != 0;
  }
  /// Kept blocks over the blocks of the causal triangle.
  double density() const;
};

/// A prompt's queries and keys of one layer, after RoPE.
struct PromptAttention {
  View<const float> q;  // [q_heads, n, dim]
  View<const float> k;  // [kv_heads, n, dim]
  int layer = 0;
};

using TokenId = std::int32_t;

/// Drafted continuations as a tree: node i continues `parent[i]` (-1: the last accepted token).
struct DraftTree {
  std::vector<TokenId> tokens;
  std::vector<int> parent;                    // parent[i] < i
  std::vector<std::vector<float>> probability;  // per node: distribution it was sampled from; empty = deterministic
};

/// The model whose output distribution counts. It runs its attention through the cache that it is given.
struct TargetModel {
  CacheShape shape;
  int vocabulary = 0;
  /// Logits [n, vocabulary] of n tokens at `positions` under `mask`, keys and values going through `cache`.
  std::function<void(std::span<const TokenId> tokens, View<const std::int64_t> positions, const AttentionMask& mask,
                     KvCache& cache, View<float> logits)>
      forward;
};

struct DraftModel {
  /// Proposes up to `nodes` tokens after `context` (everything accepted so far).
  std::function<DraftTree(std::span<const TokenId> context, int nodes)> propose;
};

struct SpeculationStats {
  std::int64_t emitted = 0, full_steps = 0, partial_steps = 0, drafted = 0, accepted = 0;
};

/// Emits tokens of the target with the help of a draft.
class Speculator {
 public:
  virtual ~Speculator() = default;
  virtual void start(std::span<const TokenId> prompt) = 0;
  /// One round: draft, verify, accept; returns the emitted tokens (at least one).
  virtual std::vector<TokenId> step() = 0;
  virtual SpeculationStats stats() const = 0;
  virtual KvCache& cache() = 0;
};

struct SpeculationOptions {
  bool greedy = true;
  float temperature = 1.0F;
  std::uint64_t seed = 0;
};

/// What a method may ask for beside its parameters.
struct OpenInputs {
  const TensorMap* trained = nullptr;  // the file given with --trained
  std::uint64_t seed = 0;
};

/// Weights of one attention layer before and after a conversion, and the cache shape that they then need.
struct Conversion {
  TensorMap weights;
  CacheShape shape;
};

}  // namespace kvatlas
