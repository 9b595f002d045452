#include "models/hf_config.hpp"

#include <array>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/errors.hpp"
#include "models/config_parts.hpp"

namespace kvatlas::models {

namespace {

using nlohmann::json;

// Fields that change neither what is cached nor how large a weight is.
constexpr auto kWithoutEffect = std::to_array<std::string_view>({"_name_or_path",
                                                                 "activation_function",
                                                                 "architectures",
                                                                 "attention_dropout",
                                                                 "attn_implementation",
                                                                 "attn_pdrop",
                                                                 "attn_logit_softcapping",
                                                                 "auto_map",
                                                                 "aux_loss_alpha",
                                                                 "bos_token_id",
                                                                 "cache_implementation",
                                                                 "clip_qkv",
                                                                 "cls_token_id",
                                                                 "dropout",
                                                                 "embd_pdrop",
                                                                 "emb_pdrop",
                                                                 "embedding_fraction",
                                                                 "eos_token_id",
                                                                 "ep_size",
                                                                 "final_logit_softcapping",
                                                                 "gradient_checkpointing",
                                                                 "hidden_act",
                                                                 "hidden_activation",
                                                                 "hidden_dropout",
                                                                 "init_config",
                                                                 "init_device",
                                                                 "initial_context_length",
                                                                 "initializer_range",
                                                                 "is_decoder",
                                                                 "is_encoder_decoder",
                                                                 "layer_norm_eps",
                                                                 "layer_norm_epsilon",
                                                                 "learned_pos_emb",
                                                                 "logit_scale",
                                                                 "mlp_dropout",
                                                                 "model_type",
                                                                 "moe_renormalize",
                                                                 "moe_router_activation_func",
                                                                 "n_group",
                                                                 "norm_eps",
                                                                 "norm_topk_prob",
                                                                 "norm_type",
                                                                 "num_expert_group",
                                                                 "num_hidden_groups",
                                                                 "num_nextn_predict_layers",
                                                                 "output_attentions",
                                                                 "output_hidden_states",
                                                                 "output_router_logits",
                                                                 "pad_token_id",
                                                                 "pretraining_tp",
                                                                 "problem_type",
                                                                 "qk_head_dim",
                                                                 "resid_pdrop",
                                                                 "return_dict",
                                                                 "rms_norm_eps",
                                                                 "rotary",
                                                                 "routed_scaling_factor",
                                                                 "router_aux_loss_coef",
                                                                 "router_jitter_noise",
                                                                 "scale_attn_weights",
                                                                 "scoring_func",
                                                                 "seq_aux",
                                                                 "summary_type",
                                                                 "swiglu_limit",
                                                                 "task_specific_params",
                                                                 "tokenizer_class",
                                                                 "topk_group",
                                                                 "transformers_version",
                                                                 "unsloth_fixed",
                                                                 "use_cache",
                                                                 "use_grouped_topk",
                                                                 "verbose"});

// Fields of models whose caches this import cannot describe.
constexpr auto kOtherArchitectures = std::to_array<std::string_view>(
    {"ssm_cfg", "mamba_d_state", "mamba_num_heads", "state_size", "ssm_state_size", "hybrid_override_pattern",
     "attn_layer_period", "compress_ratios", "rwkv_version"});

// What gemma3_text configs leave out, because the published modelling code defaults to it.
const json& gemma3_defaults() {
  static const json defaults{
      {"num_attention_heads", 8}, {"num_key_value_heads", 4},          {"head_dim", 256},
      {"vocab_size", 262208},     {"max_position_embeddings", 131072}, {"query_pre_attn_scalar", 256},
      {"rope_theta", 1e6},        {"rope_local_base_freq", 1e4}};
  return defaults;
}

constexpr int kMaxDepth = 32;  // copies and prints of deeper JSON would exhaust the stack
constexpr std::uintmax_t kMaxFileBytes = 16 << 20;

json parse(std::string_view text, std::string_view origin) {
  try {
    return json::parse(text, [&](int depth, json::parse_event_t, json&) {
      if (depth > kMaxDepth) throw InvalidArgument(cat(origin, " nests its values deeper than ", kMaxDepth, " levels"));
      return true;
    });
  } catch (const json::parse_error& e) {
    throw InvalidArgument(cat(origin, " is not JSON: the text stops making sense at byte ", e.byte));
  } catch (const json::out_of_range&) {
    throw InvalidArgument(cat(origin, " holds a number beyond the range of doubles"));
  }
}

// A multimodal config keeps its decoder in text_config; what that leaves out is said beside it.
json decoder_of(const json& config, std::vector<std::string>& warnings) {
  json flat = config;
  for (const char* tower : {"vision_config", "audio_config"})
    if (flat.contains(tower)) {
      warnings.push_back(cat("field ", tower, " describes another tower; only the text decoder is imported"));
      flat.erase(tower);
      for (const char* side : {"mm_tokens_per_image", "image_token_index", "boi_token_index", "eoi_token_index"})
        flat.erase(side);
    }
  const auto text = flat.find("text_config");
  if (text == flat.end()) return flat;
  if (!text->is_object()) throw InvalidArgument("text_config is not an object, must be a JSON object");
  const json inner = *text;
  flat.erase("text_config");
  flat.update(inner);
  return flat;
}

Dtype import_dtype(Fields& config, std::vector<std::string>& warnings) {
  const auto old_name = config.text("torch_dtype");
  const auto new_name = config.text("dtype");
  if (!old_name && !new_name) {
    warnings.push_back("field torch_dtype is absent; a cache in bf16 is assumed");
    return Dtype::bf16;
  }
  const std::string name = old_name ? *old_name : *new_name;
  if (name == "bfloat16") return Dtype::bf16;
  if (name == "float16") return Dtype::f16;
  if (name == "float32") return Dtype::f32;
  throw InvalidArgument(cat("torch_dtype is \"", name, "\", must be one of bfloat16, float16, float32"));
}

Dims import_dims(Fields& config, const Family& family, Model& model) {
  Dims d;
  d.hidden = config.required({"hidden_size", "n_embd", "d_model"}, 1, kMaxWidth);
  d.layers = static_cast<int>(config.required({"num_hidden_layers", "n_layer", "n_layers"}, 1, kMaxLayers));
  d.q_heads = static_cast<int>(config.required({"num_attention_heads", "n_head", "n_heads"}, 1, kMaxHeads));
  d.vocabulary = config.required({"vocab_size"}, 1, kMaxVocabulary);
  const bool latent = config.has("kv_lora_rank");
  const auto kv_heads = config.any({"num_key_value_heads", "n_head_kv"}, 1, kMaxHeads);
  d.kv_heads = static_cast<int>(kv_heads.value_or(d.q_heads));
  if (!kv_heads && !latent && family.gated)
    model.warnings.push_back(
        cat("field num_key_value_heads is absent; one for each of ", d.q_heads, " query heads is assumed"));
  if (d.q_heads % d.kv_heads != 0)
    throw InvalidArgument(
        cat("num_attention_heads is ", d.q_heads, ", must be a multiple of num_key_value_heads (", d.kv_heads, ")"));
  if (const auto given = config.integer("head_dim", 1, kMaxHeadDim)) {
    d.head_dim = static_cast<int>(*given);
  } else if (!latent) {
    if (d.hidden % d.q_heads != 0)
      throw InvalidArgument(cat("hidden_size is ", d.hidden, ", must be a multiple of num_attention_heads (", d.q_heads,
                                ") where head_dim is absent"));
    d.head_dim = static_cast<int>(d.hidden / d.q_heads);
  }
  check_all_heads("num_attention_heads", d.q_heads, d.head_dim);
  d.dtype = import_dtype(config, model.warnings);
  return d;
}

std::optional<PublishedFigure> published(Fields& from, std::string_view field) {
  auto figure = from.object(field);
  if (!figure) return std::nullopt;
  return PublishedFigure{.value = figure->required({"value"}, 1, INT64_MAX),
                         .rounding = figure->integer("rounding", 1, INT64_MAX).value_or(1),
                         .source = figure->text("source").value_or("")};
}

void import_identity(Fields& config, std::string_view origin, Model& model) {
  std::filesystem::path path{std::string(origin)};
  std::string stem = path.stem().string();
  if (stem == "config" && path.has_parent_path()) stem = path.parent_path().filename().string();
  model.slug = model.name = stem.empty() ? "config" : stem;
  model.source = cat("config file ", origin);
  auto ours = config.object("kvatlas");
  if (!ours) return;
  model.slug = ours->text("slug").value_or(model.slug);
  model.name = ours->text("name").value_or(model.name);
  model.source = ours->text("source").value_or(model.source);
  model.aliases = ours->texts("aliases").value_or(std::vector<std::string>{});
  if (auto figures = ours->object("published")) {
    model.published_parameters = published(*figures, "parameters");
    model.published_active_parameters = published(*figures, "active_parameters");
    model.published_kv_bytes_per_token = published(*figures, "kv_bytes_per_token");
    model.published_kv_bytes_per_token_fp8_latent = published(*figures, "kv_bytes_per_token_fp8_latent");
    model.published_elsewhere = figures->integer("parameters_outside_text", 0, INT64_MAX).value_or(0);
  }
}

void report_unread(Fields& config, std::vector<std::string>& warnings) {
  for (const std::string_view name : kWithoutEffect) config.ignore(name);
  for (const std::string& name : config.unread())
    warnings.push_back(cat("field ", name, " is not known; it was not used"));
}

}  // namespace

Model import_config(std::string_view text, std::string_view origin) {
  Model model;
  const json parsed = parse(text, origin);
  if (!parsed.is_object())
    throw InvalidArgument(cat(origin, " holds ", parsed.type_name(), ", must hold a JSON object"));
  json flat = decoder_of(parsed, model.warnings);
  ReadLog log;
  Fields config(flat, log);
  model.model_type = config.text("model_type").value_or("");
  if (model.model_type.starts_with("gemma3"))
    for (const auto& [name, value] : gemma3_defaults().items())
      if (!config.has(name) && !(name.starts_with("rope") && config.has("rope_parameters"))) {
        flat[name] = value;
        model.warnings.push_back(
            cat("field ", name, " is absent; ", value.dump(), " is assumed, the default of gemma3_text"));
      }

  if (config.boolean("is_encoder_decoder").value_or(false))
    throw Unsupported("is_encoder_decoder is true, must be false: only decoders are imported");
  for (const std::string_view field : kOtherArchitectures)
    if (config.has(field))
      throw Unsupported(cat("model_type is \"", model.model_type, "\" with field ", field,
                            ", must be a decoder of attention, latent or linear-attention layers"));
  Family family;
  if (const Family* known = find_family(model.model_type)) {
    family = *known;
  } else {
    model.warnings.push_back(cat("model_type \"", model.model_type,
                                 "\" is not known; imported as a decoder with gated FFN and two norms a layer"));
  }

  if (family.model_type == "mpt" && !config.boolean("no_bias").value_or(true))
    family.qkv_bias = family.o_bias = family.ffn_bias = family.layer_norm_bias = true;

  import_identity(config, origin, model);
  const Dims dims = import_dims(config, family, model);
  model.hidden = dims.hidden;
  model.vocabulary = dims.vocabulary;
  model.cache.dtype = dims.dtype;
  model.tied_embeddings = config.boolean("tie_word_embeddings").value_or(family.tied);
  if (const auto context = config.any(
          {"max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"}, 1, kMaxContext))
    model.trained_context = Tokens(*context);
  model.score_softcap = config.number("attn_logit_softcapping", 0.0, 1e9).value_or(0.0);
  import_layers(config, family, dims, model);

  model.ends = {{.name = "embedding", .n = dims.vocabulary, .k = dims.hidden, .role = Role::embedding},
                {.name = "lm_head",
                 .n = dims.vocabulary,
                 .k = dims.hidden,
                 .role = Role::lm_head,
                 .bias = family.head_bias,
                 .shared = model.tied_embeddings}};
  model.end_vectors = {{"final_norm", dims.hidden * (family.layer_norm_bias ? 2 : 1)}};
  model.native_bits = import_weight_bits(config, dims.dtype, model.warnings);
  report_unread(config, model.warnings);
  if (const auto sentence = why_not(model.cache)) throw InvalidArgument(*sentence);
  return model;
}

Model import_config_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path))
    throw IoError(cat(path.string(), " cannot be read, must be a config.json file"));
  if (const std::uintmax_t bytes = std::filesystem::file_size(path); bytes > kMaxFileBytes)
    throw InvalidArgument(cat(path.string(), " has ", bytes, " bytes, must have at most ", kMaxFileBytes));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  try {
    return import_config(text, path.string());
  } catch (const InvalidArgument& e) {
    const std::string_view sentence = e.what();
    throw InvalidArgument(sentence.starts_with(path.string()) ? std::string(sentence)
                                                              : cat(path.string(), ": ", sentence));
  } catch (const Unsupported& e) {
    throw Unsupported(cat(path.string(), ": ", e.what()));
  }
}

}  // namespace kvatlas::models
