#include "models/files/gguf.hpp"

#include <cstring>
#include <limits>

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/support/gguf_writer.hpp"

using namespace kvatlas;
using kvatlas::testing::as_bytes;
using kvatlas::testing::GgufWriter;
using models::Gguf;

namespace {

/// What the parser says to these bytes.
std::string answer(std::string_view file) {
  const std::vector<std::byte> bytes = as_bytes(file);
  try {
    models::parse_gguf(bytes, "m.gguf");
  } catch (const Unsupported& e) {
    return cat("unsupported: ", e.what());
  } catch (const IoError& e) {
    return e.what();
  }
  return "read";
}
std::string answer(const GgufWriter& writer) { return answer(writer.bytes()); }

template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing refused";
}

std::string little(std::uint64_t value, std::size_t bytes) {
  std::string out;
  for (std::size_t i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFFU);
  return out;
}

const std::vector<float> kSix{1, 2, 3, 4, 5, 6};

}  // namespace

TEST_CASE("a GGUF file's matrices have rows first, whichever order the file keeps", "[unit]") {
  const std::vector<std::byte> bytes = as_bytes(GgufWriter().tensor("w", {3, 2}, kSix).tensor("b", {2}, {7, 8}).tensor("s", {}, {9}).bytes());
  const Gguf file = models::parse_gguf(bytes, "m.gguf");
  REQUIRE(file.tensors.size() == 3);
  const models::TensorInfo& w = file.tensors[0];
  CHECK(w.shape == std::vector<std::int64_t>{2, 3});
  CHECK((w.rows() == 2 && w.columns() == 3));
  std::vector<float> row(3);
  models::dequantize(w, 1, 1, row);
  CHECK(row == std::vector<float>{4, 5, 6});
  CHECK((file.tensors[1].rows() == 1 && file.tensors[1].columns() == 2));
  CHECK((file.tensors[2].rows() == 1 && file.tensors[2].columns() == 1));
  CHECK(file.tensors[1].bytes.data() - bytes.data() > 0);
}

TEST_CASE("metadata of every kind reads back", "[unit]") {
  GgufWriter writer;
  writer.version = 2;
  writer.text("t", "a").u32("u", 4000000000U).i64("i", -5).f32("f", 0.5F).boolean("yes", true).boolean("no", false);
  writer.texts("ts", {"", "x", "\xE2\x96\x81y"}).i32s("is", {-1, 2}).f32s("fs", {0.25F}).texts("none", {});
  writer.raw("bs", 9, little(7, 4) + little(3, 8) + std::string("\1\0\1", 3)).raw("u16", 2, "\x02\x01").raw("f64", 12, little(0x3FF8000000000000U, 8));
  writer.raw("u8s", 9, little(0, 4) + little(2, 8) + "\xFF\x01");
  const std::vector<std::byte> bytes = as_bytes(writer.bytes());
  const Gguf file = models::parse_gguf(bytes, "m.gguf");
  CHECK(file.version == 2);
  CHECK(file.text("t") == "a");
  CHECK(file.integer("u") == 4000000000);
  CHECK(file.number("u") == 4e9);
  CHECK(file.integer("i") == -5);
  CHECK(file.number("f") == 0.5);
  CHECK(file.number("f64") == 1.5);
  CHECK(file.integer("u16") == 258);
  CHECK(file.boolean("yes") == true);
  CHECK(file.boolean("no") == false);
  CHECK(file.texts("ts") == std::vector<std::string_view>{"", "x", "\xE2\x96\x81y"});
  CHECK(file.texts("none")->empty());
  CHECK(file.integers("is") == std::vector<std::int64_t>{-1, 2});
  CHECK(file.integers("bs") == std::vector<std::int64_t>{1, 0, 1});
  CHECK(file.integers("u8s") == std::vector<std::int64_t>{255, 1});
  CHECK(file.numbers("fs") == std::vector<double>{0.25});
  CHECK(file.numbers("is") == std::vector<double>{-1, 2});
  CHECK_FALSE(file.text("absent").has_value());
  CHECK_FALSE(file.texts("absent").has_value());
}

TEST_CASE("a metadata key of another kind is refused with its name", "[unit]") {
  GgufWriter writer;
  writer.text("t", "x").u32("u", 1).f32("f", 1).boolean("b", true).u64("big", 1ULL << 63U).texts("ts", {"x"}).i32s("is", {1});
  writer.raw("nested", 9, little(9, 4) + little(1, 8) + little(4, 4) + little(1, 8) + little(5, 4));
  const std::vector<std::byte> bytes = as_bytes(writer.bytes());
  const Gguf file = models::parse_gguf(bytes, "m.gguf");
  CHECK(refusal([&] { file.text("u"); }) == "m.gguf: \"u\" holds u32, must be a text");
  CHECK(refusal([&] { file.integer("f"); }) == "m.gguf: \"f\" holds f32, must be an integer");
  CHECK(refusal([&] { file.integer("b"); }) == "m.gguf: \"b\" holds boolean, must be an integer");
  CHECK(refusal([&] { file.integer("is"); }) == "m.gguf: \"is\" holds an array of i32, must be an integer");
  CHECK(refusal([&] { file.integer("big"); }) == "m.gguf: \"big\" holds 9223372036854775808, must be at most 2^63 - 1");
  CHECK(refusal([&] { file.number("t"); }) == "m.gguf: \"t\" holds text, must be a number");
  CHECK(refusal([&] { file.boolean("u"); }) == "m.gguf: \"u\" holds u32, must be a boolean");
  CHECK(refusal([&] { file.texts("t"); }) == "m.gguf: \"t\" holds one text, must be an array of texts");
  CHECK(refusal([&] { file.texts("is"); }) == "m.gguf: \"is\" holds an array of i32, must be an array of texts");
  CHECK(refusal([&] { file.integers("ts"); }) == "m.gguf: \"ts\" holds an array of text, must be an array of integers");
  CHECK(refusal([&] { file.numbers("nested"); }) == "m.gguf: \"nested\" holds an array of array, must be an array of numbers");
}

TEST_CASE("a GGUF file cut off at any byte is refused", "[unit]") {
  const std::string whole = GgufWriter().text("k", "v").texts("a", {"one", "two"}).f32("f", 1).tensor("w", {3, 2}, kSix).tensor("b", {2}, {7, 8}).bytes();
  REQUIRE(answer(whole) == "read");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    CAPTURE(n);
    CHECK(answer(std::string_view(whole).substr(0, n)) != "read");
  }
}

TEST_CASE("a GGUF file with any one byte changed is read or refused, never worse", "[unit]") {
  const std::string whole = GgufWriter().text("k", "v").texts("a", {"one", "two"}).u32("general.alignment", 32).tensor("w", {3, 2}, kSix).bytes();
  int read = 0, refused = 0;
  for (std::size_t n = 0; n < whole.size(); ++n)
    for (const int flip : {1, 0x80, 0xFF}) {
      std::string broken = whole;
      broken[n] = static_cast<char>(static_cast<unsigned char>(broken[n]) ^ static_cast<unsigned>(flip));
      (answer(broken) == "read" ? read : refused) += 1;
    }
  CHECK((read > 0 && refused > 0));
}

TEST_CASE("headers that GGUF does not allow are refused by name", "[unit]") {
  CHECK(answer("GGML....") == "m.gguf: not a GGUF file, it must start with GGUF");
  GgufWriter writer;
  writer.version = 1;
  CHECK(answer(writer) == "unsupported: m.gguf: GGUF version is 1, must be 2 or 3");
  writer.version = 4;
  CHECK(answer(writer) == "m.gguf: GGUF version is 4, must be 2 or 3");
  writer.version = 0x03000000;
  CHECK(answer(writer) == "unsupported: m.gguf: the file is big-endian, only little-endian files are read");
  CHECK(answer("GGUF" + little(3, 4) + little(1ULL << 60U, 8) + little(0, 8)) == "m.gguf: announces 1152921504606846976 tensors, more than its 24 bytes can hold");
  CHECK(answer("GGUF" + little(3, 4) + little(0, 8) + little(~0ULL, 8)) ==
        "m.gguf: announces 18446744073709551615 metadata entries, more than its 24 bytes can hold");
  CHECK(answer(GgufWriter().u32("k", 1).u32("k", 2)) == "m.gguf: metadata key \"k\" is given twice");
  CHECK(answer(GgufWriter().raw("k", 13, "x")) == "m.gguf: value type at byte 33 is 13, must be at most 12");
  CHECK(answer(GgufWriter().raw("k", 8, little(99, 8) + "x")) == "m.gguf: a text at byte 37 announces 99 bytes, must be at most 46");
  CHECK(answer(GgufWriter().raw("k", 8, little(9, 8) + "x")) == "m.gguf: cut off: a text at byte 45 needs 9 bytes, 1 are left");
  CHECK(answer(GgufWriter().raw("k", 9, little(4, 4) + little(1ULL << 62U, 8) + "1234")) ==
        "m.gguf: an array at byte 49 announces 4611686018427387904 elements, more than the 4 bytes left can hold");
  std::string nest;
  for (int i = 0; i < 6; ++i) nest += little(9, 4) + little(1, 8);
  CHECK(answer(GgufWriter().raw("k", 9, nest + little(0, 4) + little(1, 8) + "x")) == "m.gguf: arrays at byte 85 are nested deeper than 4 levels");
  for (const std::uint32_t alignment : {0U, 24U, 1U << 21U})
    CHECK(answer(GgufWriter().u32("general.alignment", alignment)) ==
          cat("m.gguf: general.alignment is ", alignment, ", must be a power of two of at most 1048576"));
  CHECK(answer(GgufWriter().u32("split.count", 3)) == "unsupported: m.gguf: one of 3 files of a split model; join them with gguf-split --merge");
}

TEST_CASE("tensors that a GGUF file cannot hold are refused by name", "[unit]") {
  const std::string block(34, 'x');
  CHECK(answer(GgufWriter().tensor("w", {32}, 8, block)) == "read");
  CHECK(answer(GgufWriter().tensor("w", {31}, 8, block)) == "m.gguf: tensor \"w\" has rows of 31 values, must be a multiple of 32 for Q8_0");
  CHECK(answer(GgufWriter().tensor("w", {2, 16}, 8, block)) == "m.gguf: tensor \"w\" has rows of 2 values, must be a multiple of 32 for Q8_0");
  CHECK(answer(GgufWriter().tensor("w", {64}, 8, block)) == "m.gguf: tensor \"w\" needs 68 bytes from offset 0, the file holds 34 bytes of data (cut off?)");
  CHECK(answer(GgufWriter().tensor("w\n", {0}, 0, "")) == "m.gguf: tensor \"w\\x0A\": dimension 0 is 0, must be positive and leave at most 2^62 elements");
  CHECK(answer(GgufWriter().tensor("w", {1ULL << 32U, 1ULL << 32U}, 0, "")) ==
        "m.gguf: tensor \"w\": dimension 1 is 4294967296, must be positive and leave at most 2^62 elements");
  CHECK(answer(GgufWriter().tensor("w", {1ULL << 62U}, 0, "")) == "m.gguf: tensor \"w\" is larger than any file");
  CHECK(answer(GgufWriter().tensor("w", {1, 1, 1, 1, 1}, 0, "1234")) == "m.gguf: tensor \"w\" has 5 dimensions, must be at most 4");
  const std::string allowed = ", must be one of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";
  CHECK(answer(GgufWriter().tensor("w", {256}, 10, "x")) == "unsupported: tensor \"w\" has type Q2_K" + allowed);
  CHECK(answer(GgufWriter().tensor("w", {256}, 99, "x")) == "m.gguf: tensor \"w\" has type 99" + allowed);
  CHECK(answer(GgufWriter().tensor("w", {1}, {1}).tensor("w", {1}, {2})) == "m.gguf: tensor \"w\" is given twice");
  CHECK(answer(GgufWriter().tensor_at("a", {1}, 0, 4, "12345678")) == "m.gguf: tensor \"a\" lies at offset 4, must be a multiple of the alignment (32)");
  CHECK(answer(GgufWriter().tensor("a", {16}, 0, std::string(64, 'x')).tensor_at("b", {1}, 0, 32, "")) == "m.gguf: tensors \"a\" and \"b\" overlap");
  CHECK(answer(GgufWriter().tensor_at("a", {1}, 0, ~31ULL, "1234")) ==
        "m.gguf: tensor \"a\" needs 4 bytes from offset 18446744073709551584, the file holds 4 bytes of data (cut off?)");
}

TEST_CASE("data follows general.alignment", "[unit]") {
  GgufWriter writer;
  writer.alignment = 64;
  writer.u32("general.alignment", 64).tensor("a", {1}, {1}).tensor("b", {1}, {2});
  const std::vector<std::byte> bytes = as_bytes(writer.bytes());
  const Gguf file = models::parse_gguf(bytes, "m.gguf");
  CHECK((file.tensors[0].bytes.data() - bytes.data()) % 64 == 0);
  CHECK(file.tensors[1].bytes.data() - file.tensors[0].bytes.data() == 64);
  float b = 0;
  std::memcpy(&b, file.tensors[1].bytes.data(), 4);
  CHECK(b == 2);
}
