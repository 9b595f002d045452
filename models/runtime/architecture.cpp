#include "models/runtime/architecture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "core/rope.hpp"
#include "models/hf_config.hpp"

namespace kvatlas::models {

namespace {

using nlohmann::json;

/// A GGUF architecture and the model type whose published code computes the same.
struct GgufArchitecture {
  std::string_view name, model_type;
  bool interleaved_rows = false;  // the converter reorders W_q and W_k for rotation of neighbouring channels
};
constexpr std::array kGguf{GgufArchitecture{.name = "llama", .model_type = "llama", .interleaved_rows = true},
                           GgufArchitecture{.name = "qwen2", .model_type = "qwen2"},
                           GgufArchitecture{.name = "qwen3", .model_type = "qwen3"},
                           GgufArchitecture{.name = "gemma3", .model_type = "gemma3_text"}};

/// The first feature that the forward pass lacks; empty when it can run the model.
std::string why_not_run(const Model& m) {
  for (const LayerClass& c : m.cache.classes) {
    if (c.kind != RowKind::kv) return "a layer keeps no keys and values of its own kind";
    if (!c.readers.empty()) return "layers read the rows of other layers";
    if (c.alibi) return "positions are linear biases";
    if (c.attention_sink) return "a learned logit joins the softmax";
  }
  if (m.score_softcap > 0) return cat("attn_logit_softcapping is ", m.score_softcap);
  for (const LayerGroup& g : m.groups) {
    if (g.experts > 0) return "layers hold experts";
    bool gated = false;
    for (const MatMul& w : g.matrices) {
      if (w.name == "q_and_gate") return "attention has an output gate";
      gated = gated || w.name == "gate";
    }
    if (!gated) return "the FFN is not gated";
  }
  return {};
}

Architecture from_json(const json& config, std::string_view origin) {
  Architecture a;
  a.model = import_config(config.dump(), origin);
  if (const std::string why = why_not_run(a.model); !why.empty())
    throw Unsupported(cat(origin, ": ", why, "; the forward pass runs decoders of attention with keys and values and a gated FFN"));
  // What a multimodal config nests counts as its own, as in import_config.
  const json& inner = config.contains("text_config") ? config.at("text_config") : config;
  a.norm_eps = inner.value("rms_norm_eps", 1e-6F);
  if (inner.contains("final_logit_softcapping") && inner.at("final_logit_softcapping").is_number())
    throw Unsupported(cat(origin, ": final_logit_softcapping is ", inner.at("final_logit_softcapping").dump(), "; the forward pass has no soft caps"));
  const bool gemma = a.model.model_type.starts_with("gemma");
  std::string activation = gemma ? "gelu_pytorch_tanh" : "silu";
  for (const char* field : {"hidden_act", "hidden_activation"})
    if (inner.contains(field) && inner.at(field).is_string()) activation = inner.at(field).get<std::string>();
  if (activation == "silu" || activation == "swish")
    a.activation = Activation::silu;
  else if (activation == "gelu_pytorch_tanh" || (gemma && activation == "gelu"))  // early Gemma configs mean the tanh form
    a.activation = Activation::gelu_tanh;
  else
    throw Unsupported(cat(origin, ": hidden_act is \"", activation, "\", must be silu or gelu_pytorch_tanh"));
  if (gemma) {  // the published code scales embeddings and reads w as 1 + w
    a.embedding_scale = std::sqrt(static_cast<float>(a.model.hidden));
    a.norm_adds_one = true;
  }
  return a;
}

json parse_config(std::string_view text, std::string_view origin) {
  const json config = json::parse(text, nullptr, false);
  if (!config.is_object()) throw InvalidArgument(cat(origin, " holds no JSON object, must be a config.json"));
  return config;
}

/// Llama 3.1 files carry what their scaling does to each pair instead of its name: 1 over the change of the frequency.
json llama3_scaling(const WeightFile& file, const TensorInfo& factors, double base, std::int64_t rotary_dim) {
  std::vector<float> given(static_cast<std::size_t>(factors.columns() * factors.rows()));
  dequantize(factors, 0, factors.rows(), given);
  const float factor = *std::ranges::max_element(given);
  RopeSpec spec{.base = base, .rotary_dim = static_cast<int>(rotary_dim)};
  const std::vector<double> plain = rope_frequencies(spec);
  spec.scaling = RopeScaling::llama3;
  spec.factor = static_cast<double>(factor);
  spec.original_context = 8192;
  const std::vector<double> scaled = rope_frequencies(spec);
  bool same = given.size() == plain.size();
  for (std::size_t i = 0; same && i < plain.size(); ++i)
    same = std::abs(plain[i] / scaled[i] / static_cast<double>(given[i]) - 1.0) < 1e-4;
  if (!same)
    throw Unsupported(cat(file.path().string(), ": rope_freqs.weight is not the scaling of Llama 3.1 (low 1, high 4, 8,192 tokens), the only one read from factors"));
  return {{"rope_type", "llama3"}, {"factor", spec.factor}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 8192}};
}

json config_of_gguf(const WeightFile& file, const GgufArchitecture& arch) {
  const auto key = [&](const char* name) { return cat(arch.name, ".", name); };
  const auto integer = [&](const char* name) {
    const auto n = file.integer(key(name));
    if (!n) throw IoError(cat(file.path().string(), ": metadata ", key(name), " is missing"));
    return *n;
  };
  const TensorInfo* embedding = file.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    throw IoError(cat(file.path().string(), ": tensor token_embd.weight is missing, must be a matrix"));
  json c;
  c["model_type"] = arch.model_type;
  c["kvatlas"] = {{"slug", file.path().stem().string()}, {"name", std::string(file.text("general.name").value_or(file.path().stem().string()))}};
  c["hidden_size"] = integer("embedding_length");
  c["intermediate_size"] = integer("feed_forward_length");
  c["num_hidden_layers"] = integer("block_count");
  c["num_attention_heads"] = integer("attention.head_count");
  c["num_key_value_heads"] = file.integer(key("attention.head_count_kv")).value_or(integer("attention.head_count"));
  c["vocab_size"] = embedding->rows();
  c["tie_word_embeddings"] = file.find("output.weight") == nullptr;
  c["torch_dtype"] = "bfloat16";  // the dtype of the uncompressed cache; quantised files have none of their own
  c["rms_norm_eps"] = file.number(key("attention.layer_norm_rms_epsilon")).value_or(1e-6);
  const std::int64_t head_dim = file.integer(key("attention.key_length")).value_or(integer("embedding_length") / integer("attention.head_count"));
  c["head_dim"] = head_dim;
  if (file.integer(key("attention.value_length")).value_or(head_dim) != head_dim)
    throw Unsupported(cat(file.path().string(), ": ", key("attention.value_length"), " must equal ", key("attention.key_length"), " (", head_dim, ")"));
  if (const auto n = file.integer(key("context_length"))) c["max_position_embeddings"] = *n;
  const double base = file.number(key("rope.freq_base")).value_or(10000.0);
  c["rope_theta"] = base;
  if (const auto window = file.integer(key("attention.sliding_window")); window && *window > 0) {
    c["sliding_window"] = *window;
    if (arch.name == "gemma3") {
      c["sliding_window_pattern"] = file.integer(key("attention.sliding_window_pattern")).value_or(6);
      c["rope_local_base_freq"] = file.number(key("rope.freq_base_swa")).value_or(10000.0);
    }
  }
  if (arch.name == "gemma3") c["query_pre_attn_scalar"] = head_dim;
  if (const TensorInfo* factors = file.find("rope_freqs.weight")) {
    c["rope_scaling"] = llama3_scaling(file, *factors, base, head_dim);
  } else if (const auto type = file.text(key("rope.scaling.type")); type && *type != "none") {
    c["rope_scaling"] = {{"rope_type", *type}, {"factor", file.number(key("rope.scaling.factor")).value_or(1.0)}};
    if (const auto original = file.integer(key("rope.scaling.original_context_length")))
      c["rope_scaling"]["original_max_position_embeddings"] = *original;
  }
  if (arch.name == "llama" && file.find("blk.0.attn_q.bias") != nullptr) c["attention_bias"] = true;
  return c;
}

}  // namespace

Architecture architecture_of_config(std::string_view text, std::string_view origin) {
  return from_json(parse_config(text, origin), origin);
}

Architecture architecture_of(const WeightFile& file) {
  if (!file.has("general.architecture")) {
    const std::filesystem::path beside = file.path().parent_path() / "config.json";
    const std::vector<std::byte> bytes = io::read_file(beside.string());
    Architecture a = architecture_of_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, beside.string());
    return a;
  }
  const std::string_view name = file.text("general.architecture").value_or("");
  const auto arch = std::ranges::find_if(kGguf, [&](const GgufArchitecture& g) { return g.name == name; });
  if (arch == kGguf.end()) {
    std::string known;
    for (const GgufArchitecture& g : kGguf) known += cat(known.empty() ? "" : ", ", g.name);
    throw Unsupported(cat(file.path().string(), ": general.architecture is \"", name, "\", must be one of ", known));
  }
  Architecture a = from_json(config_of_gguf(file, *arch), file.path().string());
  a.interleaved_rows = arch->interleaved_rows;
  a.norm_adds_one = false;  // the converter has added it
  return a;
}

}  // namespace kvatlas::models
