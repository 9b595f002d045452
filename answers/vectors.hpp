// Vectors for authors of kernels: inputs, packed bytes and outputs of a method on small cases, in memory, in files, and compared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "answers/record.hpp"
#include "core/io/tensor.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::answers {

/// A packed buffer of the method's state.
struct StoredBuffer {
  std::string name, component, side, scope;
  std::vector<std::byte> bytes;
  friend bool operator==(const StoredBuffer&, const StoredBuffer&) = default;
};

/// The state at one moment of a case: "prompt" (after end_prefill) or "end".
struct VectorStage {
  std::string name;
  std::vector<StoredBuffer> buffers;
};

/// What a case is about: a cache of one sequence; two sequences that share their prefix; a conversion of weights; rounds of drafting and
/// verifying with a model that is a table.
enum class VectorKind : std::uint8_t { cache, group, conversion, speculation };
const char* name_of(VectorKind kind);

struct VectorCase {
  std::string name;
  VectorKind kind = VectorKind::cache;
  MethodChoice choice;
  CacheShape shape;                   // equal layers
  std::int64_t prompt = 0, chunk = 0, decode = 0;  // of a group: decode tokens of each of the two sequences, behind the prompt; of speculation: rounds
  TensorMap inputs;                   // q, k [layers, heads, tokens, k_dim] before RoPE, v; of a conversion its weights; of speculation the model's table
  TensorMap trained;                  // trained parts, where the method needs them: random, they say nothing of quality
  TensorMap outputs;                  // out [layers, q_heads, tokens, v_dim]; of a conversion the converted weights; of speculation emitted and fed as well
  std::vector<VectorStage> stages;
};

/// The same small cases on every machine.
std::vector<VectorCase> vector_cases(const Method& method, int count);

/// The reference run on the inputs of a case: outputs and stages anew.
VectorCase rerun(const VectorCase& from);

/// Every difference between what a case holds and what it should hold, as sentences; empty when equal bit for bit.
std::vector<std::string> differences(const VectorCase& expected, const VectorCase& got);

/// The description in case.json: shape, order of work, every file with shape and hash, every buffer with its place.
Json describe(const VectorCase& one);

/// Writes a case into a folder of its own: case.json and .npy files. Returns the bytes written. throws IoError
std::int64_t write_case(const VectorCase& one, const std::filesystem::path& folder);

/// throws IoError for a folder that holds no case, for words, sizes and arrays that such a case cannot have, and for files that do not
/// have the hashes and shapes that case.json states
VectorCase read_case(const std::filesystem::path& folder);

}  // namespace kvatlas::answers
