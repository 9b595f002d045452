// Blocks of ggml against its own C functions and against the Python package gguf, byte for byte.
#include "core/formats/ggml_blocks.hpp"

#include <algorithm>
#include <cmath>

#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;
using num::GgmlType;

namespace {

constexpr GgmlType kTypes[] = {GgmlType::q8_0, GgmlType::q5_1, GgmlType::q5_0, GgmlType::q4_1,
                               GgmlType::q4_0, GgmlType::iq4_nl, GgmlType::mxfp4, GgmlType::nvfp4};

/// Blocks in which the C functions convert infinity to an integer (1 / d overflows) or leave codes unwritten (iq4_nl below its
/// smallest block): what they hold is chance.
bool undefined(GgmlType type, std::span<const float> x) {
  float largest = 0;
  for (const float f : x) largest = std::max(largest, std::fabs(f));
  return type == GgmlType::iq4_nl ? largest < 1e-15F : largest > 0 && largest < 1e-36F;
}

void check_case(const GoldenCase& golden) {
  for (const GgmlType type : kTypes) {
    const std::string name = num::name_of(type), blocks = name + "_blocks", decode = name + "_decode";
    if (!golden.has(blocks)) continue;
    const num::GgmlShape shape = num::ggml_shape(type);
    std::vector<std::byte> bytes;
    if (golden.has("x")) {
      const std::vector<float> x = golden.floats("x").values;
      bytes.resize(x.size() / static_cast<std::size_t>(shape.values) * static_cast<std::size_t>(shape.bytes));
      num::encode_ggml(type, x, bytes);
      std::vector<std::int64_t> ours;
      const std::vector<std::int64_t> theirs = golden.integers(blocks).values;
      REQUIRE(theirs.size() == bytes.size());
      for (std::size_t i = 0; i < bytes.size(); ++i) {
        const std::size_t block = i / static_cast<std::size_t>(shape.bytes), values = static_cast<std::size_t>(shape.values);
        if (undefined(type, std::span(x).subspan(block * values, values))) bytes[i] = static_cast<std::byte>(theirs[i]);
        ours.push_back(static_cast<std::int64_t>(bytes[i]));
      }
      check_exact(golden, blocks, ours);
    } else {
      for (const std::int64_t b : golden.integers(blocks).values) bytes.push_back(static_cast<std::byte>(b));
    }
    if (!golden.has(decode)) continue;
    std::vector<float> decoded(bytes.size() / static_cast<std::size_t>(shape.bytes) * static_cast<std::size_t>(shape.values));
    num::decode_ggml(type, bytes, decoded);
    check_exact(golden, decode, decoded);
  }
}

}  // namespace

TEST_CASE("every llama.cpp block type has the bytes of ggml's reference functions", "[golden]") {
  for (const GoldenCase& golden : golden_cases("llamacpp_kv")) {
    CAPTURE(golden.name());
    check_case(golden);
  }
}

TEST_CASE("every llama.cpp block type has the bytes and values of the Python package gguf", "[golden]") {
  for (const GoldenCase& golden : golden_cases("gguf")) {
    CAPTURE(golden.name());
    check_case(golden);
  }
}
