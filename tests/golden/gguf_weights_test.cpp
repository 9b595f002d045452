// Blocks of weight files against the Python package gguf, bit for bit.
#include "models/files/weight_file.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("every tensor type of a weight file decodes to the bits of the gguf package", "[golden]") {
  int types = 0;
  for (const GoldenCase& golden : golden_cases("gguf_weights"))
    for (const auto& [type, name] : {std::pair{models::TensorType::f32, "f32"}, {models::TensorType::f16, "f16"}, {models::TensorType::bf16, "bf16"},
                                     {models::TensorType::q4_0, "q4_0"}, {models::TensorType::q4_1, "q4_1"}, {models::TensorType::q5_0, "q5_0"},
                                     {models::TensorType::q5_1, "q5_1"}, {models::TensorType::q8_0, "q8_0"}, {models::TensorType::q4_k, "q4_k"},
                                     {models::TensorType::q5_k, "q5_k"}, {models::TensorType::q6_k, "q6_k"}}) {
      CAPTURE(name);
      const IntTensor blocks = golden.integers(cat(name, "_blocks"));
      std::vector<std::byte> bytes;
      for (const std::int64_t b : blocks.values) bytes.push_back(static_cast<std::byte>(b));
      const models::BlockShape shape = models::block_shape(type);
      REQUIRE(blocks.dims[1] == shape.bytes);
      // A matrix of one block a row, read whole and row by row.
      const models::TensorInfo tensor{.name = name, .type = type, .shape = {blocks.dims[0], shape.values}, .bytes = bytes};
      std::vector<float> whole(static_cast<std::size_t>(blocks.dims[0] * shape.values)), rows;
      models::dequantize(tensor, 0, blocks.dims[0], whole);
      check_exact(golden, cat(name, "_decode"), whole);
      for (std::int64_t r = 0; r < blocks.dims[0]; ++r) {
        std::vector<float> row(static_cast<std::size_t>(shape.values));
        models::dequantize(tensor, r, 1, row);
        rows.insert(rows.end(), row.begin(), row.end());
      }
      check_exact(golden, cat(name, "_decode"), rows);
      ++types;
    }
  CHECK(types == 11);
}
