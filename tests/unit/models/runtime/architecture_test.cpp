// What a GGUF file says about its decoder: read as its converter meant it, and refused in one sentence where it cannot be.
#include "models/runtime/architecture.hpp"

#include <cmath>
#include <limits>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "models/files/gguf.hpp"
#include "tests/catch.hpp"
#include "tests/support/gguf_writer.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;
using namespace kvatlas::models;

namespace {

struct Keys {
  std::string arch = "llama", name = "n";
  std::int64_t hidden = 32, heads = 4, layers = 2, head_dim = 0, rotary = 0;
  float eps = 1e-5F, base = 10000.0F;
};

/// The architecture that such a file describes.
Architecture read(const Keys& k) {
  testing::GgufWriter w;
  const auto key = [&](const char* name) { return cat(k.arch, ".", name); };
  w.text("general.architecture", k.arch).text("general.name", k.name).i64(key("embedding_length"), k.hidden).i64(key("feed_forward_length"), 48);
  w.i64(key("block_count"), k.layers).i64(key("attention.head_count"), k.heads).i64(key("attention.head_count_kv"), 2);
  w.f32(key("attention.layer_norm_rms_epsilon"), k.eps).f32(key("rope.freq_base"), k.base).i64(key("context_length"), 64);
  if (k.head_dim != 0) w.i64(key("attention.key_length"), k.head_dim).i64(key("attention.value_length"), k.head_dim);
  if (k.arch == "gemma3") w.i64(key("attention.sliding_window"), 16);
  if (k.rotary != 0) w.i64(key("rope.dimension_count"), k.rotary);
  w.tensor("token_embd.weight", {32, 3}, std::vector<float>(96, 0.5F));
  const std::vector<std::byte> bytes = testing::as_bytes(w.bytes());
  const Gguf file = parse_gguf(bytes, "m.gguf");
  return architecture_of(file, file.tensors, "m.gguf");
}

std::string refusal(const Keys& k) {
  try {
    read(k);
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("metadata out of range is refused by its key", "[unit]") {
  CHECK(refusal({}) == "accepted");
  CHECK(refusal({.heads = 0}) == "m.gguf: metadata llama.attention.head_count is 0, must be 1 to 4096");
  CHECK(refusal({.hidden = std::numeric_limits<std::int64_t>::min(), .heads = -1}) ==
        "m.gguf: metadata llama.embedding_length is -9223372036854775808, must be 1 to 262144");
  CHECK(refusal({.layers = 1 << 20}) == "m.gguf: metadata llama.block_count is 1048576, must be 1 to 1024");
  CHECK(refusal({.head_dim = 1 << 20}) == "m.gguf: metadata llama.attention.key_length is 1048576, must be 1 to 16384");
  CHECK(refusal({.head_dim = 8, .rotary = 4}) == "m.gguf: llama.rope.dimension_count is 4, must equal the channels of a head (8)");
  for (const float eps : {std::numeric_limits<float>::quiet_NaN(), -1e-5F, 0.0F, std::numeric_limits<float>::infinity()}) {
    CAPTURE(eps);
    CHECK(refusal({.eps = eps}).starts_with("m.gguf: metadata llama.attention.layer_norm_rms_epsilon is "));
  }
  CHECK(refusal({.base = std::numeric_limits<float>::quiet_NaN()}).starts_with("m.gguf: metadata llama.rope.freq_base is "));
  CHECK(refusal({.arch = "ll\xff"}) == "m.gguf: general.architecture is \"ll\\xFF\", must be one of llama, qwen2, qwen3, gemma3");
}

TEST_CASE("an opened file gives the architecture of its bytes", "[unit]") {
  const testing::TempFolder folder;
  const std::string path = folder.file("m.gguf"), content = testing::GgufWriter().text("general.architecture", "qwen3").i64("qwen3.embedding_length", 32)
      .i64("qwen3.feed_forward_length", 48).i64("qwen3.block_count", 2).i64("qwen3.attention.head_count", 4)
      .tensor("token_embd.weight", {32, 3}, std::vector<float>(96, 0.5F)).bytes();
  io::write_file(path, std::as_bytes(std::span(content)));
  const Architecture a = architecture_of(WeightFile::open(path));
  CHECK(a.model.vocabulary == 3);
  CHECK(a.model.tied_embeddings);
}

TEST_CASE("a name that is no UTF-8 is spelled in ASCII", "[unit]") { CHECK(read({.name = "a\xff\xfe"}).model.name == "a\\xFF\\xFE"); }

TEST_CASE("Gemma 3 27B alone scales scores by the hidden width of a head", "[unit]") {
  const auto scale = [](const Keys& k) { return read(k).model.cache.classes.front().score_scale; };
  CHECK(scale({.arch = "gemma3", .hidden = 5376, .heads = 32, .layers = 62, .head_dim = 128}) == 1.0 / std::sqrt(168.0));
  CHECK(scale({.arch = "gemma3", .hidden = 3840, .heads = 16, .layers = 48, .head_dim = 256}) == 0.0);  // 1/sqrt(head_dim)
}
