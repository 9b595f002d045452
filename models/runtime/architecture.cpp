#include "models/runtime/architecture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "core/rope.hpp"
#include "models/files/gguf.hpp"
#include "models/files/printable.hpp"
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

// What no decoder comes near; the import has bounds of its own, of what it is given.
constexpr std::int64_t kMostWidth = std::int64_t{1} << 18, kMostHeads = 1 << 12, kMostHeadDim = 1 << 14, kMostContext = std::int64_t{1} << 28, kMostLayers = 1024;

/// Model types whose published code computes what the forward pass computes, and nothing more.
constexpr std::array<std::string_view, 8> kRunnable{"llama", "Yi", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "gemma3_text"};

std::string listed(auto&& names) {
  std::string text;
  for (const std::string_view n : names) text += cat(text.empty() ? "" : ", ", n);
  return text;
}

/// `printable` without its quotes.
std::string ascii(std::string_view text) {
  const std::string quoted = printable(text);
  return quoted.substr(1, quoted.size() - 2);
}

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
      if (w.bias && w.role == Role::ffn) return "the FFN has biases";
      if (w.name == "q_and_gate") return "attention has an output gate";
      gated = gated || w.name == "gate";
    }
    if (!gated) return "the FFN is not gated";
  }
  return {};
}

/// Scalings of rotary embedding that the import lets pass unscaled; here they would change every key.
std::string why_not_scaled(const json& scaling) {
  if (!scaling.is_object()) return {};
  for (const char* nested : {"full_attention", "sliding_attention"})
    if (scaling.contains(nested))
      if (std::string why = why_not_scaled(scaling.at(nested)); !why.empty()) return why;
  for (const char* field : {"rope_type", "type"})
    if (scaling.contains(field) && scaling.at(field).is_string())
      for (const std::string type = scaling.at(field).get<std::string>(); const char* without : {"dynamic", "longrope", "su"})
        if (type == without) return cat("rope scaling is \"", type, "\"");
  return {};
}

float norm_eps_of(const json& config, std::string_view origin) {
  if (!config.contains("rms_norm_eps") || config.at("rms_norm_eps").is_null()) return 1e-6F;
  const json& given = config.at("rms_norm_eps");
  const double eps = given.is_number() ? given.get<double>() : 0.0;
  if (!(eps >= 1e-12 && eps <= 1.0)) throw InvalidArgument(cat(origin, ": rms_norm_eps is ", ascii(given.dump()), ", must be a number from 1e-12 to 1"));
  return static_cast<float>(eps);
}

Architecture from_json(const std::string& text, std::string_view origin) {
  Architecture a;
  a.model = import_config(text, origin);  // also bounds how deep the text nests
  // What a multimodal config nests counts as its own, as in import_config.
  json inner = json::parse(text);
  if (const auto nested = inner.find("text_config"); nested != inner.end() && nested->is_object()) {
    const json own = *nested;
    inner.erase("text_config");
    inner.update(own);
  }
  for (const char* field : {"rope_scaling", "rope_parameters"})
    if (inner.contains(field))
      if (const std::string why = why_not_scaled(inner.at(field)); !why.empty())
        throw Unsupported(cat(origin, ": ", why, "; the forward pass knows linear, yarn and llama3"));
  if (const std::string why = why_not_run(a.model); !why.empty())
    throw Unsupported(cat(origin, ": ", why, "; the forward pass runs decoders of attention with keys and values and a gated FFN"));
  if (std::ranges::find(kRunnable, a.model.model_type) == kRunnable.end())
    throw Unsupported(cat(origin, ": model_type is ", printable(a.model.model_type), ", must be one of ", listed(kRunnable), ": the forward pass knows no other code"));
  a.norm_eps = norm_eps_of(inner, origin);
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
    throw Unsupported(cat(origin, ": hidden_act is ", printable(activation), ", must be silu or gelu_pytorch_tanh"));
  if (gemma) {  // the published code scales embeddings and reads w as 1 + w
    a.embedding_scale = std::sqrt(static_cast<float>(a.model.hidden));
    a.norm_adds_one = true;
  }
  a.post_norms = a.model.model_type.starts_with("gemma3");
  return a;
}

/// Llama 3.1 files carry what their scaling does to each pair instead of its name: 1 over the change of the frequency.
json llama3_scaling(std::string_view origin, const TensorInfo& factors, double base, std::int64_t rotary_dim) {
  RopeSpec spec{.base = base, .rotary_dim = static_cast<int>(rotary_dim)};
  const std::vector<double> plain = rope_frequencies(spec);
  bool same = factors.rows() == 1 && factors.columns() == static_cast<std::int64_t>(plain.size());
  if (same) {
    std::vector<float> given(plain.size());
    dequantize(factors, 0, 1, given);
    const float factor = *std::ranges::max_element(given);
    same = factor >= 1.0F && factor <= 1e6F;
    if (same) {
      spec.scaling = RopeScaling::llama3;
      spec.factor = static_cast<double>(factor);
      spec.original_context = 8192;
      const std::vector<double> scaled = rope_frequencies(spec);
      for (std::size_t i = 0; same && i < plain.size(); ++i)
        same = std::abs(plain[i] / scaled[i] / static_cast<double>(given[i]) - 1.0) < 1e-4;
    }
  }
  if (!same)
    throw Unsupported(cat(origin, ": rope_freqs.weight is not the scaling of Llama 3.1 (low 1, high 4, 8,192 tokens), the only one read from factors"));
  return {{"rope_type", "llama3"}, {"factor", spec.factor}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 8192}};
}

/// Metadata of one architecture, each value within what it can be: the file is untrusted.
class GgufKeys {
 public:
  GgufKeys(const Gguf& file, std::string_view architecture, std::string_view origin) : file_(file), architecture_(architecture), origin_(origin) {}

  std::optional<std::int64_t> integer(const char* name, std::int64_t most, std::int64_t least = 1) const {
    const std::string key = full(name);
    const auto n = file_.integer(key);
    if (n && (*n < least || *n > most)) throw IoError(cat(origin_, ": metadata ", key, " is ", *n, ", must be ", least, " to ", most));
    return n;
  }
  std::int64_t needed(const char* name, std::int64_t most) const {
    const auto n = integer(name, most);
    if (!n) throw IoError(cat(origin_, ": metadata ", full(name), " is missing"));
    return *n;
  }
  double number(const char* name, double absent, double least, double most) const {
    const std::string key = full(name);
    const double x = file_.number(key).value_or(absent);
    if (!(x >= least && x <= most)) throw IoError(cat(origin_, ": metadata ", key, " is ", x, ", must be a number from ", least, " to ", most));
    return x;
  }
  std::optional<std::string_view> text(const char* name) const { return file_.text(full(name)); }
  std::string full(const char* name) const { return cat(architecture_, ".", name); }

 private:
  const Gguf& file_;
  std::string_view architecture_, origin_;
};

/// llama.cpp knows Gemma 3 27B by its layers; it alone scales scores by the hidden width of a head instead of its channels.
constexpr std::int64_t kLayersOfGemma27B = 62;

json config_of_gguf(const Gguf& file, std::span<const TensorInfo> tensors, const GgufArchitecture& arch, std::string_view origin) {
  const GgufKeys keys(file, arch.name, origin);
  const auto tensor = [&](std::string_view name) -> const TensorInfo* {
    const auto at = std::ranges::find_if(tensors, [&](const TensorInfo& t) { return t.name == name; });
    return at == tensors.end() ? nullptr : &*at;
  };
  const TensorInfo* embedding = tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    throw IoError(cat(origin, ": tensor token_embd.weight is missing, must be a matrix"));
  const std::string stem = ascii(std::filesystem::path(std::string(origin)).stem().string());
  const std::int64_t hidden = keys.needed("embedding_length", kMostWidth), heads = keys.needed("attention.head_count", kMostHeads);
  json c;
  c["model_type"] = arch.model_type;
  c["kvatlas"] = {{"slug", stem}, {"name", ascii(file.text("general.name").value_or(stem))}};
  c["hidden_size"] = hidden;
  c["intermediate_size"] = keys.needed("feed_forward_length", kMostWidth);
  c["num_hidden_layers"] = keys.needed("block_count", kMostLayers);
  c["num_attention_heads"] = heads;
  c["num_key_value_heads"] = keys.integer("attention.head_count_kv", kMostHeads).value_or(heads);
  c["vocab_size"] = embedding->rows();
  c["tie_word_embeddings"] = tensor("output.weight") == nullptr;
  c["torch_dtype"] = "bfloat16";  // the dtype of the uncompressed cache; quantised files have none of their own
  c["rms_norm_eps"] = keys.number("attention.layer_norm_rms_epsilon", 1e-6, 1e-12, 1.0);
  const std::int64_t head_dim = keys.integer("attention.key_length", kMostHeadDim).value_or(std::max<std::int64_t>(1, hidden / heads));
  c["head_dim"] = head_dim;
  if (keys.integer("attention.value_length", kMostHeadDim).value_or(head_dim) != head_dim)
    throw Unsupported(cat(origin, ": ", keys.full("attention.value_length"), " must equal ", keys.full("attention.key_length"), " (", head_dim, ")"));
  if (const auto rotary = keys.integer("rope.dimension_count", kMostHeadDim); rotary && *rotary != head_dim)
    throw Unsupported(cat(origin, ": ", keys.full("rope.dimension_count"), " is ", *rotary, ", must equal the channels of a head (", head_dim, ")"));
  if (const auto n = keys.integer("context_length", kMostContext)) c["max_position_embeddings"] = *n;
  const double base = keys.number("rope.freq_base", 10000.0, 1.0, 1e12);
  c["rope_theta"] = base;
  if (const auto window = keys.integer("attention.sliding_window", kMostContext, 0); window && *window > 0) {
    c["sliding_window"] = *window;
    if (arch.name == "gemma3") {
      c["sliding_window_pattern"] = keys.integer("attention.sliding_window_pattern", kMostLayers).value_or(6);
      c["rope_local_base_freq"] = keys.number("rope.freq_base_swa", 10000.0, 1.0, 1e12);
    }
  }
  if (arch.name == "gemma3") c["query_pre_attn_scalar"] = c["num_hidden_layers"] == kLayersOfGemma27B ? std::max<std::int64_t>(1, hidden / heads) : head_dim;
  if (const TensorInfo* factors = tensor("rope_freqs.weight")) {
    if (head_dim % 2 != 0) throw IoError(cat(origin, ": ", keys.full("attention.key_length"), " is ", head_dim, ", must be even"));
    c["rope_scaling"] = llama3_scaling(origin, *factors, base, head_dim);
  } else if (const auto type = keys.text("rope.scaling.type"); type && *type != "none") {
    c["rope_scaling"] = {{"rope_type", ascii(*type)}, {"factor", keys.number("rope.scaling.factor", 1.0, 1.0, 1e12)}};
    if (const auto original = keys.integer("rope.scaling.original_context_length", kMostContext))
      c["rope_scaling"]["original_max_position_embeddings"] = *original;
  }
  if (arch.name == "llama" && tensor("blk.0.attn_q.bias") != nullptr) c[tensor("blk.0.attn_output.bias") != nullptr ? "attention_bias" : "qkv_bias"] = true;
  return c;
}

}  // namespace

Architecture architecture_of_config(std::string_view text, std::string_view origin) {
  try {
    return from_json(std::string(text), origin);
  } catch (const json::exception& e) {
    throw InvalidArgument(cat(origin, " is no config.json that can be read: ", ascii(e.what())));
  }
}

Architecture architecture_of(const Gguf& file, std::span<const TensorInfo> tensors, std::string_view origin) {
  const std::string_view name = file.text("general.architecture").value_or("");
  const auto arch = std::ranges::find_if(kGguf, [&](const GgufArchitecture& g) { return g.name == name; });
  if (arch == kGguf.end()) {
    std::vector<std::string_view> known;
    for (const GgufArchitecture& g : kGguf) known.push_back(g.name);
    throw Unsupported(cat(origin, ": general.architecture is ", printable(name), ", must be one of ", listed(known)));
  }
  Architecture a = architecture_of_config(config_of_gguf(file, tensors, *arch, origin).dump(), origin);
  a.interleaved_rows = arch->interleaved_rows;
  a.norm_adds_one = false;  // the converter has added it
  return a;
}

Architecture architecture_of(const WeightFile& file) {
  if (file.gguf() != nullptr) return architecture_of(*file.gguf(), file.tensors(), file.path().string());
  const std::filesystem::path beside = file.path().parent_path() / "config.json";
  const std::vector<std::byte> bytes = io::read_file(beside.string());
  return architecture_of_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, beside.string());
}

}  // namespace kvatlas::models
