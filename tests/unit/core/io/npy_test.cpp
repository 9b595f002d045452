#include "core/io/npy.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "tests/catch.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;

namespace {

std::vector<std::byte> file_of(const std::string& header, const std::string& data, char version = 1) {
  std::string text = "\x93NUMPY";
  text += version;
  text += '\0';
  const auto size = static_cast<std::uint32_t>(header.size());
  for (unsigned i = 0; i < (version == 1 ? 2U : 4U); ++i) text += static_cast<char>((size >> (8U * i)) & 0xFFU);
  text += header + data;
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

std::string header(const std::string& descr, const std::string& shape, const std::string& order = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

std::string refusal(const std::vector<std::byte>& bytes) {
  try {
    io::parse_npy(bytes, "a.npy");
  } catch (const IoError& e) {
    return e.what();
  }
  return "read";
}

}  // namespace

TEST_CASE("a written .npy file reads back with the same bits, NaN and infinity included", "[unit]") {
  const testing::TempFolder folder;
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const NamedTensor tensor{.dims = {2, 1, 3}, .values = {1.5F, -0.0F, nan, inf, -inf, 1e-45F}};
  io::write_npy(folder.file("t.npy"), tensor);
  REQUIRE(folder.count() == 1);
  const auto bytes = io::read_file(folder.file("t.npy"));
  REQUIRE((bytes.size() - 24) % 64 == 0);  // data starts at a multiple of 64, as NumPy writes it
  const NamedTensor back = io::to_floats(io::read_npy(folder.file("t.npy")), "t");
  REQUIRE(back.dims == tensor.dims);
  REQUIRE(std::memcmp(back.values.data(), tensor.values.data(), 24) == 0);
}

TEST_CASE("header versions 1, 2 and 3 and scalar, vector and empty shapes are read", "[unit]") {
  for (const char version : {'\1', '\2', '\3'}) {
    const auto raw = io::parse_npy(file_of(header("<f4", "(1, 2)"), std::string(8, '\0'), version), "a");
    REQUIRE(raw.dims == std::vector<std::int64_t>{1, 2});
  }
  REQUIRE(io::parse_npy(file_of(header("<f4", "()"), std::string(4, '\0')), "a").dims.empty());
  REQUIRE(io::parse_npy(file_of(header("<f4", "(2,)"), std::string(8, '\0')), "a").dims == std::vector<std::int64_t>{2});
  REQUIRE(io::parse_npy(file_of(header("<f4", "(0, 7)"), ""), "a").bytes.empty());
}

TEST_CASE("half, double and integer arrays are converted", "[unit]") {
  // 0x3C00 is 1.0, 0xC100 is -2.5 in IEEE half precision.
  const auto half = io::parse_npy(file_of(header("<f2", "(2,)"), std::string("\x00\x3C\x00\xC1", 4)), "a");
  REQUIRE(io::to_floats(half, "a").values == std::vector<float>{1.0F, -2.5F});
  const double value = 0.1;
  std::string eight(8, '\0');
  std::memcpy(eight.data(), &value, 8);
  REQUIRE(io::to_floats(io::parse_npy(file_of(header("<f8", "(1,)"), eight), "a"), "a").values == std::vector<float>{0.1F});
  REQUIRE(io::to_integers(io::parse_npy(file_of(header("|i1", "(2,)"), "\xFF\x05"), "a"), "a") == std::vector<std::int64_t>{-1, 5});
  REQUIRE(io::to_integers(io::parse_npy(file_of(header("<u2", "(1,)"), "\xFE\xFF"), "a"), "a") == std::vector<std::int64_t>{65534});
  REQUIRE(io::to_integers(io::parse_npy(file_of(header("|b1", "(2,)"), std::string("\x01\x00", 2)), "a"), "a") == std::vector<std::int64_t>{1, 0});
  REQUIRE_THROWS_WITH(io::to_floats(io::parse_npy(file_of(header("<u2", "(1,)"), "\xFE\xFF"), "a"), "k"),
                      "k holds U16, which may be bf16 bit patterns; save it as float32, float16 or safetensors BF16");
  REQUIRE_THROWS_WITH(io::to_floats(io::parse_npy(file_of(header("|i1", "(1,)"), "1"), "a"), "k"), "k holds I8, must be F16, BF16, F32 or F64");
  REQUIRE_THROWS_WITH(io::to_integers(half, "k"), "k holds F16, must be an integer type");
}

TEST_CASE("what a .npy file must not be is refused with its sentence", "[unit]") {
  const std::string eight(8, '\0');
  REQUIRE(refusal(file_of(header("<f4", "(2,)", "True"), eight)) == "a.npy: the array is in Fortran order; save numpy.ascontiguousarray(array)");
  REQUIRE(refusal(file_of(header(">f4", "(2,)"), eight)) == "a.npy: the array is big-endian ('>f4'); save it little-endian");
  REQUIRE(refusal(file_of(header("|V2", "(4,)"), eight)) == "a.npy: type '|V2' is how bf16 arrays look in .npy; save it as float32 or safetensors BF16");
  REQUIRE(refusal(file_of(header("<c8", "(1,)"), eight)) == "a.npy: type '<c8' is not read; must be f2, f4, f8, an integer of 1 to 8 bytes, or b1");
  REQUIRE(refusal(file_of(header("<f4", "(2,)"), eight + "x")) == "a.npy: the shape needs 2 elements of 4 bytes, the file holds 9 bytes of data");
  REQUIRE(refusal(file_of(header("<f4", "(3,)"), eight)) == "a.npy: the shape needs 3 elements of 4 bytes, the file holds 8 bytes of data");
  REQUIRE(refusal(file_of(header("<f4", "(4611686018427387904, 4611686018427387904)"), eight)) ==
          "a.npy: the shape needs more bytes than a file can hold, the file holds 8 bytes of data");
  REQUIRE(refusal(file_of(header("<f8", "(4611686018427387904,)"), eight)) ==
          "a.npy: the shape needs 4611686018427387904 elements of 8 bytes, the file holds 8 bytes of data");
  REQUIRE(refusal(file_of(header("<f4", "(99999999999999999999,)"), eight)) == "a.npy: the .npy header is broken: an axis of the shape is too long");
  REQUIRE(refusal(file_of(header("<f4", "(-2,)"), eight)) == "a.npy: the .npy header is broken: a length is missing at byte 51");
  REQUIRE(refusal(file_of("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", eight)) ==
          "a.npy: the .npy header is broken: structured types are not read; save one plain array");
  REQUIRE(refusal(file_of("{'descr': '<f4', 'shape': (2,)}", eight)) ==
          "a.npy: the .npy header is broken: descr, fortran_order and shape must all be given");
  REQUIRE(refusal(file_of("{'descr': '<f4', 'descr': '<f8'}", eight)) == "a.npy: the .npy header is broken: key 'descr' is unknown or given twice");
  REQUIRE(refusal(file_of(header("<f4", "(2,)") + "x", eight)) == "a.npy: the .npy header is broken: text follows the dictionary");
  REQUIRE(refusal(file_of(header("<f4", "(2,)"), eight, '\4')) == "a.npy: .npy version is 4.0, must be 1.0, 2.0 or 3.0");
  REQUIRE(refusal(std::vector<std::byte>(20)) == "a.npy: not a .npy file, it must start with \\x93NUMPY");
}

TEST_CASE("a .npy file cut off at any byte is refused", "[unit]") {
  const auto whole = io::npy_bytes({.dims = {2, 3}, .values = {1, 2, 3, 4, 5, 6}}, "t");
  REQUIRE(refusal(whole) == "read");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    CAPTURE(n);
    REQUIRE(refusal({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)}) != "read");
  }
}

TEST_CASE("a .npy file with any one byte changed is read or refused, never worse", "[unit]") {
  const auto whole = io::npy_bytes({.dims = {2, 3}, .values = {1, 2, 3, 4, 5, 6}}, "t");
  int refused = 0;
  for (std::size_t i = 0; i < whole.size(); ++i)
    for (const int flip : {0x01, 0x08, 0x80, 0xFF}) {
      auto bytes = whole;
      bytes[i] ^= static_cast<std::byte>(flip);
      refused += refusal(bytes) != "read" ? 1 : 0;
    }
  REQUIRE(refused > 300);  // magic, version, lengths and dictionary; padding and data may change freely
}

TEST_CASE("a missing file, a folder and an unwritable path have their sentences, and nothing is left behind", "[unit]") {
  const testing::TempFolder folder;
  const std::string missing = folder.file("none.npy");
  REQUIRE_THROWS_WITH(io::read_npy(missing), "cannot read " + missing + ": no such file");
  REQUIRE_THROWS_WITH(io::read_npy(folder.file("")), "cannot read " + folder.file("") + ": it is a folder");
  REQUIRE_THROWS_AS(io::write_npy(folder.file("no/such/folder.npy"), {.dims = {1}, .values = {1}}), IoError);
  REQUIRE_THROWS_WITH(io::write_npy(folder.file("t.npy"), {.dims = {2}, .values = {1}}),
                      folder.file("t.npy") + " has 1 values, must have as many as its dims say (2)");
  REQUIRE(folder.count() == 0);
}
