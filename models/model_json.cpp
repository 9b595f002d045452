// The JSON record of a model for the command line.
#include <nlohmann/json.hpp>

#include "core/errors.hpp"
#include "models/registry.hpp"

namespace kvatlas::models {

namespace {

using nlohmann::json;

constexpr const char* kDerived = "sum over the descriptor's layers";

json figure(const json& value, const char* provenance, std::string_view source) {
  return {{"value", value}, {"provenance", provenance}, {"source", source}};
}

std::string_view name_of(RowKind kind) {
  switch (kind) {
    case RowKind::kv:
      return "kv";
    case RowKind::latent:
      return "latent";
    case RowKind::pooled:
      return "pooled";
    case RowKind::state:
      return "state";
    case RowKind::none:
      return "none";
  }
  KV_ASSERT(false, "a row kind has a name");
  return {};
}

std::string_view name_of(RopeScaling scaling) {
  switch (scaling) {
    case RopeScaling::none:
      return "none";
    case RopeScaling::linear:
      return "linear";
    case RopeScaling::ntk:
      return "ntk";
    case RopeScaling::yarn:
      return "yarn";
    case RopeScaling::llama3:
      return "llama3";
  }
  KV_ASSERT(false, "a rope scaling has a name");
  return {};
}

json rope_record(const RopeSpec& rope) {
  if (rope.rotary_dim == 0) return nullptr;
  return {{"base", rope.base},
          {"rotary_dim", rope.rotary_dim},
          {"first_channel", rope.first_channel},
          {"layout", rope.layout == RopeLayout::interleaved ? "interleaved" : "half_split"},
          {"scaling", name_of(rope.scaling)},
          {"factor", rope.factor}};
}

json class_record(const LayerClass& c, Dtype dtype, const std::string& source) {
  const bool grows = c.kind != RowKind::state && c.kind != RowKind::none;
  const std::int64_t row = c.values_per_token() * bytes_of(dtype);
  return {{"kind", name_of(c.kind)},
          {"count", c.count()},
          {"layers", c.layers},
          {"readers", c.readers},
          {"q_heads", c.q_heads},
          {"kv_heads", c.kv_heads},
          {"k_dim", c.k_dim},
          {"v_dim", c.v_dim},
          {"window_tokens", c.window.value > 0 ? json(c.window.value) : json(nullptr)},
          {"row_bytes", grows ? json(row) : json(nullptr)},
          {"index_row_bytes", c.index_dim > 0 ? json(c.index_bytes) : json(nullptr)},
          {"index_top_k", c.index_top_k > 0 ? json(c.index_top_k) : json(nullptr)},
          {"state_bytes", c.kind == RowKind::state ? json(c.state.value) : json(nullptr)},
          {"score_scale", c.score_scale > 0.0 ? json(c.score_scale) : json(nullptr)},
          {"attention_sink", c.attention_sink},
          {"alibi", c.alibi},
          {"rope", rope_record(c.rope)},
          {"provenance", "published"},
          {"source", source}};
}

json matrix_record(const MatMul& m) {
  return {{"name", m.name},   {"role", models::name_of(m.role)},
          {"n", m.n},         {"k", m.k},
          {"count", m.count}, {"active", m.active},
          {"bias", m.bias},   {"shared", m.shared}};
}

json group_record(const LayerGroup& g, const std::string& source) {
  json matrices = json::array();
  for (const MatMul& m : g.matrices) matrices.push_back(matrix_record(m));
  std::int64_t vectors = 0;
  for (const VectorWeights& v : g.vectors) vectors += v.size;
  return {{"layers", g.layers},
          {"matrices", matrices},
          {"vector_values", vectors},
          {"experts", g.experts},
          {"active_experts", g.active_experts},
          {"provenance", "published"},
          {"source", source}};
}

json published_record(const std::optional<PublishedFigure>& p) {
  if (!p) return nullptr;
  json record = figure(p->value, "published", p->source);
  record["rounding"] = p->rounding;
  return record;
}

}  // namespace

json to_json(const Model& model) {
  json classes = json::array();
  for (const LayerClass& c : model.cache.classes) classes.push_back(class_record(c, model.cache.dtype, model.source));
  json groups = json::array();
  for (const LayerGroup& g : model.groups) groups.push_back(group_record(g, model.source));
  json ends = json::array();
  for (const MatMul& m : model.ends) ends.push_back(matrix_record(m));
  return {
      {"slug", model.slug},
      {"name", model.name},
      {"aliases", model.aliases},
      {"source", model.source},
      {"model_type", model.model_type},
      {"dtype", kvatlas::name_of(model.cache.dtype)},
      {"tied_embeddings", model.tied_embeddings},
      {"qkv_bias", model.qkv_bias},
      {"qk_norm", model.qk_norm},
      {"layers", figure(layers(model), "published", model.source)},
      {"hidden", figure(model.hidden, "published", model.source)},
      {"vocabulary", figure(model.vocabulary, "published", model.source)},
      {"trained_context_tokens",
       figure(model.trained_context ? json(model.trained_context->value) : json(nullptr), "published", model.source)},
      {"parameters", figure(parameters(model), "computed", kDerived)},
      {"active_parameters", figure(active_parameters(model), "computed", kDerived)},
      {"kv_bytes_per_token", figure(kv_bytes_per_token(model).value, "computed", kDerived)},
      {"kv_bytes_per_token_fp8_latent",
       figure(has_latent_rows(model) ? json(kv_bytes_per_token_fp8_latent(model).value) : json(nullptr), "computed",
              kDerived)},
      {"fixed_cache_bytes", figure(fixed_cache_bytes(model).value, "computed", kDerived)},
      {"weight_bytes", figure(weight_bytes(model, model.native_bits).value, "computed", kDerived)},
      {"published",
       {{"parameters", published_record(model.published_parameters)},
        {"active_parameters", published_record(model.published_active_parameters)},
        {"kv_bytes_per_token", published_record(model.published_kv_bytes_per_token)},
        {"kv_bytes_per_token_fp8_latent", published_record(model.published_kv_bytes_per_token_fp8_latent)}}},
      {"layer_classes", classes},
      {"groups", groups},
      {"ends", ends},
      {"warnings", model.warnings},
  };
}

}  // namespace kvatlas::models
