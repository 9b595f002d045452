// The forward pass against transformers on tiny random models, and against itself under every chunking.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>

#include "core/io/file.hpp"
#include "core/io/safetensors.hpp"
#include "core/parallel.hpp"
#include "models/evaluation/session.hpp"
#include "models/runtime/transformer.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::models;

namespace {

const std::filesystem::path kFolder = KVATLAS_SOURCE_DIR "/tests/forward";

Transformer load(const std::string& name, const char* file = "model.safetensors") {
  WeightFile weights = WeightFile::open(kFolder / name / file);
  Architecture a = architecture_of(weights);
  return {std::move(a), WeightSet(std::move(weights))};
}

struct Expected {
  std::vector<TokenId> tokens;
  NamedTensor logits;
};

Expected expected(const std::string& name) {
  const io::SafeTensors file = io::read_safetensors((kFolder / name / "expected.safetensors").string());
  Expected e;
  for (const std::int64_t t : io::to_integers(file.at("tokens"), "tokens")) e.tokens.push_back(static_cast<TokenId>(t));
  e.logits = io::to_floats(file.at("logits"), "logits");
  return e;
}

CacheShape in_dtype(const Transformer& t, Dtype dtype) {
  CacheShape shape = t.model().cache;
  shape.dtype = dtype;
  return shape;
}

std::vector<float> run(const Transformer& t, std::span<const TokenId> tokens, std::int64_t chunk, Attention& attention) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  Array logits({n, t.vocabulary()});
  for (std::int64_t first = 0; first < n; first += chunk) {
    const std::int64_t count = std::min(chunk, n - first);
    const Segment segment{.attention = &attention, .tokens = count, .first_position = first};
    const Array states = t.forward(tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), {&segment, 1});
    t.logits(states.view(), logits.view().slice(0, first, count));
  }
  return logits.values();
}

std::vector<TokenId> long_text(const Transformer& t, std::size_t n) {
  std::vector<TokenId> tokens;
  for (std::size_t i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>((i * i * 7 + i / 3) % static_cast<std::size_t>(t.vocabulary())));
  return tokens;
}

const char* const kModels[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"};

}  // namespace

TEST_CASE("logits of tiny Llama, Mistral, Qwen2, Qwen3 and Gemma-3 models are those of transformers", "[golden]") {
  for (const char* name : kModels) {
    CAPTURE(name);
    const Transformer t = load(name);
    const Expected e = expected(name);
    PlainAttention plain(in_dtype(t, Dtype::f32));
    const std::vector<float> got = run(t, e.tokens, 40, plain);
    REQUIRE(got.size() == e.logits.values.size());
    float largest = 0, error = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      largest = std::max(largest, std::abs(e.logits.values[i]));
      error = std::max(error, std::abs(got[i] - e.logits.values[i]));
    }
    CAPTURE(largest, error);
    CHECK(error < 2e-5F * largest);  // both sum some hundreds of float32 products a value, in other orders, through three layers
  }
}

TEST_CASE("logits have the same bits with every compiler and processor", "[unit]") {
  for (const auto& [name, hash] : {std::pair{"llama", "31ea863cac18baac"}, {"qwen2", "aba639afa401180e"}, {"gemma3_text", "b2141f3bf829266d"}}) {
    const Transformer t = load(name);
    PlainAttention plain(in_dtype(t, Dtype::bf16));
    const std::vector<float> got = run(t, expected(name).tokens, 40, plain);
    CHECK(text_hash({reinterpret_cast<const char*>(got.data()), got.size() * sizeof(float)}) == hash);
  }
}

TEST_CASE("chunks of 1, 64 and 512 on one and two threads give the same bits", "[unit]") {
  for (const char* name : {"llama", "gemma3_text"}) {
    CAPTURE(name);
    const Transformer t = load(name);
    const std::vector<TokenId> tokens = long_text(t, 600);
    const int before = threads();
    std::vector<float> first;
    for (const int workers : {1, 2})
      for (const std::int64_t chunk : {1, 64, 512}) {
        set_threads(workers);
        PlainAttention plain(in_dtype(t, Dtype::bf16));
        const std::vector<float> got = run(t, tokens, chunk, plain);
        if (first.empty()) first = got;
        CAPTURE(workers, chunk);
        CHECK(got == first);
      }
    set_threads(before);
  }
}

TEST_CASE("the method full gives the bits of the plain path, with windows and without", "[unit]") {
  for (const char* name : kModels)
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      const Transformer t = load(name);
      const std::vector<TokenId> tokens = long_text(t, 300);
      const CacheShape shape = in_dtype(t, dtype);
      PlainAttention plain(shape);
      MethodAttention full(Recipe::parse("full").bind(shape).open());
      CAPTURE(name, name_of(dtype));
      CHECK(run(t, tokens, 70, plain) == run(t, tokens, 70, full));
    }
}

TEST_CASE("sequences in one batch do not change each other's bits", "[unit]") {
  const Transformer t = load("qwen3");
  const std::vector<TokenId> a = long_text(t, 20), b = long_text(t, 33);
  const CacheShape shape = in_dtype(t, Dtype::f32);
  PlainAttention alone(shape), one(shape), two(shape);
  const std::vector<float> want = run(t, b, 33, alone);
  std::vector<TokenId> both = a;
  both.insert(both.end(), b.begin(), b.end());
  const Segment batch[]{{.attention = &one, .tokens = 20}, {.attention = &two, .tokens = 33}};
  const Array states = t.forward(both, batch);
  Array logits({53, t.vocabulary()});
  t.logits(states.view(), logits.view());
  CHECK(std::equal(want.begin(), want.end(), logits.values().begin() + 20 * t.vocabulary()));
}

TEST_CASE("rows that a GGUF converter has reordered give the same attention", "[unit]") {
  // The converter's order of W_q and W_k for rotation of neighbouring channels, undone at load.
  const Transformer t = load("llama");
  const WeightSet original(WeightFile::open(kFolder / "llama/model.safetensors"));
  TensorMap reordered;
  for (const auto& [name, tensor] : original.tensors()) {
    NamedTensor copy{.dims = tensor.shape, .values = {}};
    std::int64_t rows = 1, width = tensor.shape.back();
    for (std::size_t d = 0; d + 1 < tensor.shape.size(); ++d) rows *= tensor.shape[d];
    copy.values.resize(static_cast<std::size_t>(rows * width));
    for (std::int64_t r = 0; r < rows; ++r) {
      std::int64_t to = r;
      if (name.find("q_proj") != std::string::npos || name.find("k_proj") != std::string::npos)
        to = r / 8 * 8 + (r % 8 < 4 ? 2 * (r % 8) : 2 * (r % 8 - 4) + 1);
      tensor.rows(r, 1, std::span(copy.values).subspan(static_cast<std::size_t>(to * width), static_cast<std::size_t>(width)));
    }
    reordered[name] = std::move(copy);
  }
  Architecture a = t.architecture();
  a.interleaved_rows = true;
  const Transformer other(std::move(a), WeightSet(std::move(reordered)));
  const std::vector<TokenId> tokens = long_text(t, 30);
  PlainAttention one(in_dtype(t, Dtype::f32)), two(in_dtype(t, Dtype::f32));
  CHECK(run(t, tokens, 30, one) == run(other, tokens, 30, two));
}

TEST_CASE("what the pass cannot run is refused in one sentence", "[unit]") {
  const auto sentence = [](const std::string& config) {
    try {
      architecture_of_config(config, "c.json");
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  const std::string base = R"("hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":50)";
  CHECK(sentence("{\"model_type\":\"llama\"," + base + "}") == "accepted");
  CHECK(sentence("{\"model_type\":\"llama\",\"hidden_act\":\"relu\"," + base + "}") == "c.json: hidden_act is \"relu\", must be silu or gelu_pytorch_tanh");
  CHECK(sentence("{\"model_type\":\"mixtral\",\"num_local_experts\":4,\"num_experts_per_tok\":2," + base + "}") ==
        "c.json: layers hold experts; the forward pass runs decoders of attention with keys and values and a gated FFN");
  CHECK(sentence("{\"model_type\":\"granite\",\"residual_multiplier\":0.22," + base + "}") ==
        "c.json: model_type is \"granite\", must be one of llama, Yi, mistral, qwen2, qwen3, gemma, gemma3, gemma3_text: the forward pass knows no other code");
  CHECK(sentence("{\"model_type\":\"llama\",\"mlp_bias\":true," + base + "}") ==
        "c.json: the FFN has biases; the forward pass runs decoders of attention with keys and values and a gated FFN");
  CHECK(sentence("{\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}," + base + "}") ==
        "c.json: rope scaling is \"dynamic\"; the forward pass knows linear, yarn and llama3");
  CHECK(sentence("{\"model_type\":\"llama\",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"longrope\"}}," + base + "}") ==
        "c.json: rope scaling is \"longrope\"; the forward pass knows linear, yarn and llama3");
  for (const char* eps : {"\"small\"", "-1e-6", "0", "2.0", "[]"})
    CHECK(sentence(cat("{\"model_type\":\"llama\",\"rms_norm_eps\":", eps, ",", base, "}")) == cat("c.json: rms_norm_eps is ", std::string_view(eps) == "2.0" ? "2.0" : std::string_view(eps) == "-1e-6" ? "-1e-06" : eps, ", must be a number from 1e-12 to 1"));
  CHECK(sentence("[]") == "c.json holds array, must hold a JSON object");

  const Transformer t = load("llama");
  CHECK_THROWS_WITH(t.embed(std::vector<TokenId>{3, 50}), "token 1 is 50, must be below the vocabulary (50)");
  Architecture wide = t.architecture();
  wide.model.vocabulary = 51;
  CHECK_THROWS_WITH(Transformer(std::move(wide), WeightSet(WeightFile::open(kFolder / "llama/model.safetensors"))),
                    "tensor model.embed_tokens.weight is [50, 32], must be [51, 32]");
}

TEST_CASE("a tensor that the pass does not apply and a norm that it misses are refused by name", "[unit]") {
  const auto changed = [](const char* name, const std::function<void(TensorMap&)>& change) {
    const Transformer t = load(name);
    const WeightSet original(WeightFile::open(kFolder / name / "model.safetensors"));
    TensorMap map;
    for (const auto& [called, tensor] : original.tensors()) {
      NamedTensor copy{.dims = tensor.shape, .values = {}};
      std::int64_t rows = 1;
      for (std::size_t d = 0; d + 1 < tensor.shape.size(); ++d) rows *= tensor.shape[d];
      copy.values.resize(static_cast<std::size_t>(rows * tensor.shape.back()));
      tensor.rows(0, rows, copy.values);
      map[called] = std::move(copy);
    }
    change(map);
    try {
      const Transformer again(t.architecture(), WeightSet(std::move(map)));
    } catch (const InvalidArgument& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  const NamedTensor one{.dims = {1}, .values = {0.0F}};
  CHECK(changed("llama", [&](TensorMap& m) { m["model.layers.0.mlp.down_proj.bias"] = one; }) ==
        "tensor \"model.layers.0.mlp.down_proj.bias\" has no place in a llama decoder; without it the pass would compute another model");
  CHECK(changed("llama", [&](TensorMap& m) { m["model.layers.1.pre_feedforward_layernorm.weight"] = one; }).starts_with("tensor \"model.layers.1.pre_feedforward_layernorm.weight\" has no place"));
  CHECK(changed("llama", [&](TensorMap& m) { m["model.layers.0.self_attn.rotary_emb.inv_freq"] = m["vision_tower.a"] = one; }) == "accepted");
  CHECK(changed("gemma3_text", [](TensorMap& m) { m.erase("model.layers.0.pre_feedforward_layernorm.weight"); }) ==
        "tensor model.layers.0.pre_feedforward_layernorm.weight is missing, must be [32]");
  CHECK(changed("gemma3_text", [](TensorMap& m) { m.erase("model.layers.2.post_feedforward_layernorm.weight"); }) ==
        "tensor model.layers.2.post_feedforward_layernorm.weight is missing, must be [32]");
}
