#include "models/files/weight_file.hpp"

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "core/io/safetensors.hpp"
#include "tests/catch.hpp"
#include "tests/support/gguf_writer.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;
using kvatlas::testing::as_bytes;
using kvatlas::testing::GgufWriter;
using models::TensorType;
using models::WeightFile;

namespace {

io::RawTensor raw(io::ElementType type, std::vector<std::int64_t> dims, std::string_view bytes) {
  return {.type = type, .dims = std::move(dims), .bytes = as_bytes(bytes)};
}
io::RawTensor floats(std::vector<std::int64_t> dims, std::vector<float> values) {
  return io::raw_f32({.dims = std::move(dims), .values = std::move(values)}, "t");
}

std::string refusal(const std::filesystem::path& path) {
  try {
    WeightFile::open(path);
  } catch (const Error& e) {
    const std::string text = e.what(), folder = path.parent_path().string() + "/";
    std::string out;
    for (std::size_t at = 0;;) {  // the folder of a test has a new name in every run
      const std::size_t found = text.find(folder, at);
      out += text.substr(at, found - at);
      if (found == std::string::npos) return out;
      at = found + folder.size();
    }
  }
  return "nothing refused";
}

std::vector<float> values(const WeightFile& file, std::string_view name) {
  const models::TensorInfo* tensor = file.find(name);
  REQUIRE(tensor != nullptr);
  std::vector<float> out(static_cast<std::size_t>(tensor->rows() * tensor->columns()));
  models::dequantize(*tensor, 0, tensor->rows(), out);
  return out;
}

}  // namespace

TEST_CASE("content decides what a weight file is, not its name", "[unit]") {
  const testing::TempFolder folder;
  io::write_file(folder.file("gguf.bin"), as_bytes(GgufWriter().text("general.architecture", "llama").tensor("w", {2}, {1, 2}).bytes()));
  io::write_safetensors(folder.file("st.bin"), {.tensors = {{"w", floats({2}, {3, 4})}}, .metadata = {{"format", "pt"}}});
  io::write_file(folder.file("index.bin"), as_bytes(R"( {"metadata": {"total_size": 8}, "weight_map": {"w": "st.bin"}})"));
  WeightFile gguf = WeightFile::open(folder.file("gguf.bin"));
  CHECK(values(gguf, "w") == std::vector<float>{1, 2});
  CHECK(gguf.text("general.architecture") == "llama");
  CHECK(gguf.keys() == std::vector<std::string_view>{"general.architecture"});
  CHECK(gguf.has("general.architecture"));
  CHECK_FALSE(gguf.has("general.name"));
  CHECK(gguf.find("v") == nullptr);
  const std::span<const std::byte> before = gguf.find("w")->bytes;
  const WeightFile moved = std::move(gguf);
  CHECK(moved.find("w")->bytes.data() == before.data());
  CHECK(values(moved, "w") == std::vector<float>{1, 2});
  for (const char* name : {"st.bin", "index.bin"}) {
    const WeightFile file = WeightFile::open(folder.file(name));
    CHECK(values(file, "w") == std::vector<float>{3, 4});
    CHECK(file.keys().empty());
    CHECK_FALSE(file.text("format").has_value());
  }
}

TEST_CASE("safetensors weights keep their shape and type; buffers of integers are listed apart", "[unit]") {
  const testing::TempFolder folder;
  const std::string path = folder.file("a.safetensors");
  io::write_safetensors(path, {.tensors = {{"b", raw(io::ElementType::bf16, {2, 1}, {"\x80\x3F\x00\xC0", 4})},
                                           {"a", raw(io::ElementType::f16, {1, 2}, {"\x00\x3C\x00\x00", 4})},
                                           {"ids", raw(io::ElementType::i64, {1}, "12345678")},
                                           {"empty", floats({0, 3}, {})}},
                               .metadata = {}});
  const WeightFile file = WeightFile::open(path);
  CHECK(file.tensors().size() == 3);
  CHECK(file.find("a")->type == TensorType::f16);
  CHECK(file.find("b")->type == TensorType::bf16);
  CHECK(file.find("b")->shape == std::vector<std::int64_t>{2, 1});
  CHECK(values(file, "a") == std::vector<float>{1, 0});
  CHECK(values(file, "b") == std::vector<float>{1, -2});
  CHECK(values(file, "empty").empty());
  REQUIRE(file.unread().size() == 1);
  CHECK(file.unread()[0] == "ids");
  io::write_safetensors(path, {.tensors = {{"d", raw(io::ElementType::f64, {1}, "12345678")}}, .metadata = {}});
  CHECK(refusal(path) == "a.safetensors: tensor \"d\" has dtype F64, must be one of F32, F16, BF16");
}

TEST_CASE("shards are read through their index, and must agree with it", "[unit]") {
  const testing::TempFolder folder;
  const std::string index = folder.file("model.safetensors.index.json");
  const auto write_index = [&](std::string_view text) { io::write_file(index, as_bytes(text)); };
  io::write_safetensors(folder.file("1.st"), {.tensors = {{"a", floats({1}, {1})}, {"b", floats({1}, {2})}}, .metadata = {}});
  io::write_safetensors(folder.file("2.st"), {.tensors = {{"c", floats({1}, {3})}}, .metadata = {}});
  write_index(R"({"weight_map": {"c": "2.st", "a": "1.st", "b": "1.st"}})");
  const WeightFile file = WeightFile::open(index);
  CHECK(file.tensors().size() == 3);
  CHECK(values(file, "a") == std::vector<float>{1});
  CHECK(values(file, "c") == std::vector<float>{3});

  write_index(R"({"weight_map": {"c": "2.st", "a": "1.st"}})");
  CHECK(refusal(index) == "1.st holds tensor \"b\", which model.safetensors.index.json does not place there");
  write_index(R"({"weight_map": {"c": "1.st", "a": "1.st", "b": "1.st"}})");
  CHECK(refusal(index) == "1.st lacks tensor \"c\", which model.safetensors.index.json places there");
  write_index(R"({"weight_map": {"c": "3.st"}})");
  CHECK(refusal(index) == "cannot read 3.st: No such file or directory");
  for (const char* file_name : {"../1.st", "/etc/passwd", "a\\\\b", "", "..", "a\\u0000b"}) {
    write_index(cat(R"({"weight_map": {"c": ")", file_name, R"("}})"));
    CHECK_THAT(refusal(index), contains_text("must be a file beside the index"));
  }
  write_index(R"({"weight_map": {"c": "2.st", "c": "1.st"}})");
  CHECK(refusal(index) == "model.safetensors.index.json: the index names \"c\" twice");
  write_index(R"({"weight_map": {"c": 1}})");
  CHECK(refusal(index) == "model.safetensors.index.json: weight_map must name a file for tensor \"c\"");
  write_index(R"({"weights": {}})");
  CHECK(refusal(index) == "model.safetensors.index.json: an index must be an object with an object weight_map");
  write_index(R"({"weight_map": )");
  CHECK(refusal(index) == "model.safetensors.index.json: neither a GGUF file, nor safetensors, nor the JSON of an index");
  write_index(R"({"weight_map": {}, "metadata": )" + std::string(20, '[') + std::string(20, ']') + "}");
  CHECK(refusal(index) == "model.safetensors.index.json: the index nests its values deeper than 8 levels");
}

TEST_CASE("what is no weight file is refused with the reason", "[unit]") {
  const testing::TempFolder folder;
  const std::string path = folder.file("x");
  CHECK(refusal(path) == "cannot read x: No such file or directory");
  io::write_file(path, {});
  CHECK(refusal(path) == "x: 0 bytes are too few for a safetensors file (cut off?)");
  io::write_file(path, as_bytes("plain text, no weights"));
  CHECK_THAT(refusal(path), contains_text("not a safetensors file?"));
  std::filesystem::create_directory(folder.file("d"));
  CHECK(refusal(folder.file("d")) == "cannot read d: it is not a regular file");
}

TEST_CASE("rows outside a tensor and room of another size are refused", "[unit]") {
  const std::vector<std::byte> bytes(24);
  const models::TensorInfo tensor{.name = "w", .type = TensorType::f32, .shape = {2, 3}, .bytes = bytes};
  std::vector<float> out(3);
  models::dequantize(tensor, 1, 1, out);
  models::dequantize(tensor, 2, 0, std::span<float>());
  CHECK_THROWS_WITH(models::dequantize(tensor, 2, 1, out), "rows 2 to 2 + 1 of tensor \"w\", which has 2");
  CHECK_THROWS_WITH(models::dequantize(tensor, -1, 1, out), "rows -1 to -1 + 1 of tensor \"w\", which has 2");
  CHECK_THROWS_WITH(models::dequantize(tensor, 0, 2, out), "room for 3 values, 2 rows of tensor \"w\" have 3 each");
}

TEST_CASE("a tensor of quantised rows is read from any row on", "[unit]") {
  std::string blocks;
  for (int b = 0; b < 4; ++b) {
    std::string block(34, static_cast<char>(b + 1));
    block[0] = '\0';
    block[1] = '\x3C';  // scale 1
    blocks += block;
  }
  const std::vector<std::byte> bytes = as_bytes(blocks);
  const models::TensorInfo tensor{.name = "w", .type = TensorType::q8_0, .shape = {2, 64}, .bytes = bytes};
  std::vector<float> row(64);
  models::dequantize(tensor, 1, 1, row);
  CHECK((row[0] == 3 && row[31] == 3 && row[32] == 4 && row[63] == 4));
}
