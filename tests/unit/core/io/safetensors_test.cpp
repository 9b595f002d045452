#include "core/io/safetensors.hpp"

#include <cstring>
#include <limits>
#include <string>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "tests/catch.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;

namespace {

std::vector<std::byte> file_of(const std::string& header, const std::string& data) {
  const std::uint64_t size = header.size();
  std::vector<std::byte> bytes(8 + header.size() + data.size());
  std::memcpy(bytes.data(), &size, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  if (!data.empty()) std::memcpy(bytes.data() + 8 + header.size(), data.data(), data.size());
  return bytes;
}

std::string refusal(const std::vector<std::byte>& bytes) {
  try {
    io::parse_safetensors(bytes, "s");
  } catch (const IoError& e) {
    return e.what();
  }
  return "read";
}

std::string one(const std::string& entry, std::size_t data = 8) { return refusal(file_of("{\"a\":" + entry + "}", std::string(data, '\0'))); }

io::SafeTensors sample() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  io::SafeTensors s;
  s.tensors["k"] = io::raw_f32({.dims = {1, 2}, .values = {nan, -0.0F}}, "k");
  s.tensors["codes"] = {.type = io::ElementType::u8, .dims = {3}, .bytes = {std::byte{1}, std::byte{0}, std::byte{255}}};
  s.tensors["empty"] = {.type = io::ElementType::f16, .dims = {0, 4}, .bytes = {}};
  s.metadata["rope"] = "before";
  return s;
}

}  // namespace

TEST_CASE("a written safetensors file reads back with the same bytes, types and metadata", "[unit]") {
  const testing::TempFolder folder;
  const io::SafeTensors s = sample();
  io::write_safetensors(folder.file("t.safetensors"), s);
  REQUIRE(folder.count() == 1);
  const io::SafeTensors back = io::read_safetensors(folder.file("t.safetensors"));
  REQUIRE(back.metadata == s.metadata);
  REQUIRE(back.tensors.size() == 3);
  for (const auto& [name, tensor] : s.tensors) {
    CAPTURE(name);
    REQUIRE(back.at(name).type == tensor.type);
    REQUIRE(back.at(name).dims == tensor.dims);
    REQUIRE(back.at(name).bytes == tensor.bytes);
  }
  REQUIRE_THROWS_WITH(back.at("code"), "\"code\": unknown tensor; did you mean \"codes\"?");
}

TEST_CASE("F32, F16 and BF16 tensors become floats", "[unit]") {
  const auto s = io::parse_safetensors(
      file_of(R"({"b":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},"h":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}})",
              std::string("\x80\x3F\x00\xC1", 4)), "s");
  REQUIRE(io::to_floats(s.at("b"), "b").values == std::vector<float>{1.0F});
  REQUIRE(io::to_floats(s.at("h"), "h").values == std::vector<float>{-2.5F});
}

TEST_CASE("what a safetensors file must not be is refused with its sentence", "[unit]") {
  REQUIRE(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})") == "read");
  REQUIRE(one(R"({"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]})").starts_with("s: tensor a: dtype is F8_E4M3, must be one of F16, BF16"));
  REQUIRE(one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})") == "s: tensor a: shape and dtype do not fill its 8 bytes");
  REQUIRE(one(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]})") == "s: tensor a: shape and dtype do not fill its 8 bytes");
  REQUIRE(one(R"({"dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8]})") == "s: tensor a: shape and dtype do not fill its 8 bytes");
  REQUIRE(one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})") == "s: tensor a: shape holds -2, must be a whole number of at most 2^62");
  REQUIRE(one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})") == "s: tensor a: shape holds 2.0, must be a whole number of at most 2^62");
  REQUIRE(one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})") ==
          "s: tensor a: data_offsets are [8, 0], must lie within the file's 8 bytes of data");
  REQUIRE(one(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})") ==
          "s: tensor a: data_offsets are [0, 16], must lie within the file's 8 bytes of data");
  REQUIRE(one(R"({"dtype":"F32","shape":[2]})") == "s: tensor a must have exactly dtype, shape and data_offsets");
  REQUIRE(one(R"({"dtype":4,"shape":[2],"data_offsets":[0,8]})") == "s: tensor a: dtype must be a text, shape a list, data_offsets a list of two");
  REQUIRE(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 12) == "s: tensors end at byte 8 of data, the file holds 12");
  REQUIRE(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})") == "s: tensor a leaves a gap before it (byte 4, expected 0)");
  REQUIRE(refusal(file_of(R"({"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", std::string(8, '\0'))) ==
          "s: tensor b overlaps its neighbour (byte 4, expected 6)");
  REQUIRE(refusal(file_of(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", "")) ==
          "s: the header names \"a\" twice");
  REQUIRE(refusal(file_of(R"({"__metadata__":{"n":3}})", "")) == "s: metadata n must be a text");
  REQUIRE(refusal(file_of(R"({"__metadata__":"x"})", "")) == "s: __metadata__ must be an object of texts");
  REQUIRE(refusal(file_of(R"({"a":{"dtype":"F32","shape":[[[[1]]]],"data_offsets":[0,8]}})", "")) ==
          "s: the header is nested too deeply for safetensors");
  REQUIRE(refusal(file_of("{\"a\"", "")) == "s: the header is not JSON");
  REQUIRE(refusal(file_of("[1]", "")) == "s: the header must start with '{'");
  REQUIRE(refusal(std::vector<std::byte>(8, std::byte{0xFF})) ==
          "s: the header announces 18446744073709551615 bytes, must be at most 100000000 (not a safetensors file?)");
  REQUIRE_THROWS_AS(io::safetensors_bytes({.tensors = {{"a", {.type = io::ElementType::f32, .dims = {2}, .bytes = {}}}}, .metadata = {}}), InvalidArgument);
}

TEST_CASE("a safetensors file cut off at any byte is refused", "[unit]") {
  const auto whole = io::safetensors_bytes(sample());
  REQUIRE(refusal(whole) == "read");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    CAPTURE(n);
    REQUIRE(refusal({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)}) != "read");
  }
}

TEST_CASE("a safetensors file with any one byte changed is read or refused, never worse", "[unit]") {
  const auto whole = io::safetensors_bytes(sample());
  int refused = 0;
  for (std::size_t i = 0; i < whole.size(); ++i)
    for (const int flip : {0x01, 0x02, 0x08, 0x80, 0xFF}) {
      auto bytes = whole;
      bytes[i] ^= static_cast<std::byte>(flip);
      refused += refusal(bytes) != "read" ? 1 : 0;
    }
  REQUIRE(refused > 400);
}
