// Bring your own kernel: what somebody's kernel made of a case of vectors, compared with the reference bit by bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "answers/vectors.hpp"
#include "core/io/tensor.hpp"

namespace kvatlas::answers {

/// What a kernel hands over: any of the case's outputs, and of its buffers.
struct KernelResults {
  std::map<std::string, io::RawTensor> tensors;  // "out" [layers, q_heads, tokens, v_dim]; "decode": the decode steps of it alone; or converted weights
  std::map<std::string, std::map<std::string, std::vector<std::byte>>> stages;  // "prompt", "end": buffer name -> bytes
};

/// One array compared. Floats are also compared by distance: 1 ULP is the step to the next number of the type that was handed over.
struct Difference {
  std::string stage, name;
  std::int64_t elements = 0, different = 0;
  std::vector<std::int64_t> first{};  // indices of the first element that differs
  double expected = 0, got = 0;       // its two values
  std::int64_t max_ulp = 0;
  double max_abs = 0;
  std::vector<std::pair<std::string, std::int64_t>> ulp{};  // elements by distance: "0", "1", "2", "3-4", ..., "NaN"; floats that differ
  std::string note{};                                       // why nothing could be compared
  bool equal() const { return different == 0 && note.empty(); }
};

/// In the order in which a kernel works: the first array that differs is where to look.
struct Check {
  std::vector<Difference> differences;
  std::vector<std::string> not_given;
  bool equal() const;
  const Difference* first() const;  // that differs; null when none does
};

/// Results in a folder: out.npy (or decode.npy) of float32, float16 or float64, out.bf16.npy of uint16 words that are bf16 patterns;
/// of a conversion converted_NAME.npy;
/// buffers of a stage as buffers_STAGE.npy, laid out as case.json says, or each as STAGE/NAME.npy of its bytes.
/// throws IoError for a folder that holds none of them, or files that cannot be read as that
KernelResults read_results(const VectorCase& of, const std::filesystem::path& folder);

/// throws InvalidArgument for arrays and buffers that the case does not have, or when nothing was handed over
Check check_results(const VectorCase& expected, const KernelResults& got);

/// {case, method, equal, first, differences:[...], not_given:[...]}
Json describe(const VectorCase& of, const Check& check);
/// The same as people read it.
std::string spell(const VectorCase& of, const Check& check);

}  // namespace kvatlas::answers
