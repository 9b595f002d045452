#include "reference/primitives/numbers.hpp"

#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("numbers: floats of every dtype come back from their place, fp16 saturates", "[unit]") {
  for (const Dtype type : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    std::vector<std::byte> bytes;
    for (const float x : {1.5F, -0.25F, 3.0F}) append_float(bytes, type, x);
    REQUIRE(static_cast<int>(bytes.size()) == 3 * bytes_of(type));
    CHECK(float_at(bytes, type, 1) == -0.25F);
    CHECK(float_at(bytes, type, 2) == 3.0F);
  }
  CHECK(saturated_fp16(1e9F) == 65504.0F);
  CHECK(saturated_fp16(-1e9F) == -65504.0F);
  CHECK(saturated_fp16(1.0004F) == 1.0F);
  std::vector<std::byte> bytes(5);
  put_fp16(bytes, 1, 70000.0F);
  CHECK(get_fp16(bytes, 1) == 65504.0F);
  CHECK(bytes[1] == std::byte{0xFF});
  CHECK(bytes[2] == std::byte{0x7B});
}

TEST_CASE("numbers: whole numbers are little-endian, bits begin anywhere", "[unit]") {
  std::vector<std::byte> bytes;
  append_whole(bytes, 0x1234, 2);
  append_whole(bytes, 65537, 4);
  CHECK(bytes[0] == std::byte{0x34});
  CHECK(whole_at(bytes, 0, 2) == 0x1234);
  CHECK(whole_at(std::span(bytes).subspan(2), 0, 4) == 65537);
  std::vector<std::byte> stream(4);
  put_bits(stream, 3, 12, 0xABC);
  put_bits(stream, 15, 5, 0x15);
  CHECK(get_bits(stream, 3, 12) == 0xABC);
  CHECK(get_bits(stream, 15, 5) == 0x15);
  CHECK(get_bits(stream, 0, 3) == 0);
  CHECK(stream[0] == std::byte{0xE0});  // 0xABC << 3
}
