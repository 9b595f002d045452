#include "core/formats/ggml_blocks.hpp"

#include <cmath>

#include "core/arith.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using num::GgmlType;

namespace {

std::vector<int> coded(GgmlType type, const std::vector<float>& x) {
  const num::GgmlShape shape = num::ggml_shape(type);
  std::vector<std::byte> out(x.size() / static_cast<std::size_t>(shape.values) * static_cast<std::size_t>(shape.bytes));
  num::encode_ggml(type, x, out);
  std::vector<int> bytes;
  for (const std::byte b : out) bytes.push_back(static_cast<int>(b));
  return bytes;
}

std::vector<float> decoded(GgmlType type, const std::vector<int>& bytes) {
  std::vector<std::byte> in;
  for (const int b : bytes) in.push_back(static_cast<std::byte>(b));
  const num::GgmlShape shape = num::ggml_shape(type);
  std::vector<float> x(in.size() / static_cast<std::size_t>(shape.bytes) * static_cast<std::size_t>(shape.values));
  num::decode_ggml(type, in, x);
  return x;
}

constexpr GgmlType kAll[] = {GgmlType::q8_0, GgmlType::q5_1, GgmlType::q5_0, GgmlType::q4_1,
                             GgmlType::q4_0, GgmlType::iq4_nl, GgmlType::mxfp4, GgmlType::nvfp4};

}  // namespace

TEST_CASE("ggml blocks: a ramp from -1.3 to 1.8 by hand", "[unit]") {
  std::vector<float> x;
  for (int i = 0; i < 32; ++i) x.push_back(static_cast<float>(0.1 * (i - 13)));
  const std::vector<int> q8 = coded(GgmlType::q8_0, x), q4 = coded(GgmlType::q4_0, x), q5 = coded(GgmlType::q5_1, x);
  CHECK((q8[0] | q8[1] << 8) == 0x2342);
  CHECK(std::vector<int>(q8.begin() + 2, q8.begin() + 8) == std::vector<int>{256 - 92, 256 - 85, 256 - 78, 256 - 71, 256 - 64, 256 - 56});
  CHECK(q8[33] == 127);
  CHECK((q4[0] | q4[1] << 8) == 0xB333);
  CHECK(std::vector<int>(q4.begin() + 2, q4.end()) ==
        std::vector<int>{0x7E, 0x6D, 0x6D, 0x5C, 0x5C, 0x4C, 0x4B, 0x4B, 0x3A, 0x3A, 0x29, 0x29, 0x18, 0x18, 0x08, 0x07});
  CHECK((q5[0] | q5[1] << 8) == 0x2E66);
  CHECK((q5[2] | q5[3] << 8) == 0xBD33);
  CHECK(std::vector<int>(q5.begin() + 4, q5.begin() + 10) == std::vector<int>{0, 0, 0xFF, 0xFF, 0x00, 0x11});
  CHECK(q5[23] == 0xFF);
}

TEST_CASE("ggml blocks: the extreme of a q4_0 block keeps its value, its opposite clips to 7/8", "[unit]") {
  std::vector<float> x(32, 0.0F);
  x[3] = -4.0F;
  x[20] = 4.0F;
  const std::vector<float> back = decoded(GgmlType::q4_0, coded(GgmlType::q4_0, x));
  CHECK(back[3] == -4.0F);
  CHECK(back[20] == 3.5F);
  CHECK(back[0] == 0.0F);
}

TEST_CASE("ggml blocks: zeros, constants and the smallest values are defined in every type", "[unit]") {
  for (const GgmlType type : kAll) {
    CAPTURE(num::name_of(type));
    for (const float value : {0.0F, 1e-42F, 1e-38F, 0.75F, -3.0F}) {
      CAPTURE(value);
      for (const float x : decoded(type, coded(type, std::vector<float>(64, value)))) {
        REQUIRE(std::isfinite(x));
        REQUIRE(std::fabs(x - value) <= num::max(0.13F * std::fabs(value), 1e-7F));  // fp16 scales end at 2^-24
      }
    }
  }
}

TEST_CASE("ggml blocks: a scale beyond fp16 is stored as infinity, as ggml does", "[unit]") {
  std::vector<float> x(32, 1e30F);
  const std::vector<int> q8 = coded(GgmlType::q8_0, x);
  CHECK((q8[0] | q8[1] << 8) == 0x7C00);
}

TEST_CASE("ggml blocks: nvfp4 scales round half up, 256 and above give 448", "[unit]") {
  CHECK(num::encode_ggml_ue4m3(0.0F) == 0);
  CHECK(num::encode_ggml_ue4m3(1.0F) == 0x38);
  CHECK(num::encode_ggml_ue4m3(1.0625F) == 0x39);  // nearest even would give 0x38
  CHECK(num::encode_ggml_ue4m3(1.97F) == 0x40);    // the carry raises the exponent
  CHECK(num::encode_ggml_ue4m3(250.0F) == 0x7E);
  CHECK(num::encode_ggml_ue4m3(256.0F) == 0x7E);
  CHECK(num::encode_ggml_ue4m3(1e30F) == 0x7E);
  CHECK(num::encode_ggml_ue4m3(0x1p-9F) == 1);
  CHECK(num::encode_ggml_ue4m3(0x1p-10F) == 1);
  CHECK(num::encode_ggml_ue4m3(0x1p-11F) == 0);
}

TEST_CASE("ggml blocks: codes are nearest: no stored neighbour is closer", "[unit]") {
  std::vector<float> x;
  for (int i = 0; i < 64; ++i) x.push_back(static_cast<float>((i * 37) % 64 - 31) * 0.11F);
  for (const GgmlType type : {GgmlType::q8_0, GgmlType::q5_1, GgmlType::q4_1, GgmlType::mxfp4}) {
    CAPTURE(num::name_of(type));
    const std::vector<float> back = decoded(type, coded(type, x));
    const float step = type == GgmlType::q8_0 ? 0.028F : type == GgmlType::q5_1 ? 0.22F : type == GgmlType::q4_1 ? 0.46F : 1.01F;
    for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(std::fabs(back[i] - x[i]) <= 0.52F * step);
  }
}
