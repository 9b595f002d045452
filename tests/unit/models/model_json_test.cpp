#include "models/registry.hpp"
#include "tests/catch.hpp"

namespace kvatlas::models {
namespace {

using nlohmann::json;

TEST_CASE("the record of a model gives every figure with provenance and source", "[unit]") {
  for (const Model& m : all_models()) {
    CAPTURE(m.slug);
    const json j = to_json(m);
    REQUIRE(j["slug"] == m.slug);
    for (const char* key : {"layers", "hidden", "vocabulary", "trained_context_tokens"}) {
      REQUIRE(j[key]["provenance"] == "published");
      REQUIRE(j[key]["source"] == m.source);
    }
    for (const char* key :
         {"parameters", "active_parameters", "kv_bytes_per_token", "fixed_cache_bytes", "weight_bytes"}) {
      REQUIRE(j[key]["provenance"] == "computed");
      REQUIRE(j[key]["value"].is_number_integer());
      REQUIRE_FALSE(j[key]["source"].get<std::string>().empty());
    }
    for (const json& c : j["layer_classes"]) REQUIRE(c["source"] == m.source);
    for (const json& g : j["groups"]) REQUIRE(g["source"] == m.source);
  }
}

TEST_CASE("what is unknown or does not apply is null, never zero", "[unit]") {
  const json llama = to_json(find_model("llama-3.2-1b"));
  CHECK(llama["kv_bytes_per_token_fp8_latent"]["value"].is_null());
  CHECK(llama["published"]["active_parameters"].is_null());
  CHECK(llama["layer_classes"][0]["window_tokens"].is_null());
  CHECK(llama["layer_classes"][0]["state_bytes"].is_null());
  CHECK(llama["layer_classes"][0]["score_scale"].is_null());
  const json kimi = to_json(find_model("kimi-linear-48b-a3b"));
  CHECK(kimi["layer_classes"][0]["row_bytes"].is_null());
  CHECK(kimi["layer_classes"][0]["state_bytes"] == 2097152 + 73728);
  CHECK(kimi["layer_classes"][1]["rope"].is_null());
}

TEST_CASE("the record of V3.2 shows latent rows, index rows and the published fp8 figure", "[unit]") {
  const json j = to_json(find_model("deepseek-v3.2"));
  const json& c = j["layer_classes"][0];
  CHECK(c["kind"] == "latent");
  CHECK(c["row_bytes"] == 1152);
  CHECK(c["index_row_bytes"] == 132.0);
  CHECK(c["index_top_k"] == 2048);
  CHECK(c["rope"]["scaling"] == "yarn");
  CHECK(j["kv_bytes_per_token_fp8_latent"]["value"] == 48068);
  CHECK(j["published"]["kv_bytes_per_token_fp8_latent"]["provenance"] == "published");
  CHECK(j["dtype"] == "bf16");
}

}  // namespace
}  // namespace kvatlas::models
