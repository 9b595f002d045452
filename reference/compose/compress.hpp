// Runs a recipe's reference over given keys and values: the packed buffers, their exact bytes, and the errors they cause.
#pragma once

#include <optional>
#include <vector>

#include "reference/compose/recipe.hpp"

namespace kvatlas {

/// The rows of one attention layer.
struct KvRows {
  View<const float> k;  // [kv_heads, tokens, k_dim], before RoPE where the shape rotates
  View<const float> v;  // [kv_heads, tokens, v_dim]
  View<const float> q;  // [q_heads, tokens, k_dim]; empty when not known
};

struct Compression {
  std::vector<NamedBuffer> buffers;  // after the whole prompt, ready for the first decode step
  Ledger ledger;                     // counted from them
  Bytes dense{0};                    // the same rows in the shape's dtype
  double bits_per_value = 0;
  double size_factor = 0;
  /// ||decoded - rows|| / ||rows||, Frobenius, rows in the dtype and after RoPE; nothing where the method has no rows
  /// to return (it drops or mixes tokens, or codes layers together).
  std::optional<double> k_rel_error, v_rel_error;
  std::optional<Array> k_decoded, v_decoded;  // [kv_heads, tokens, dim], where the errors are there; keys as they are kept
  bool decoded_before_rope = false;           // such keys are kept before RoPE
  /// ||out - exact|| / ||exact|| of the last `probes` tokens: the prompt before them is compressed, then they are
  /// decoded one by one through the compressed cache. Nothing without queries.
  std::optional<double> attention_rel_error;
  std::int64_t probes = 0;
};

/// shape    one layer of kind kv whose widths are those of the rows
/// probes   tokens at the end that measure attention; fewer where the prompt is short
/// throws   Unsupported when the recipe cannot serve the shape; InvalidArgument for NaN, infinity or wrong widths
Compression compress(const Recipe& recipe, const CacheShape& shape, const KvRows& rows, const OpenInputs& inputs = {},
                     std::int64_t probes = 8);

}  // namespace kvatlas
