#include "tests/catch.hpp"
#include "tests/unit/models/config_support.hpp"

namespace kvatlas::models {
namespace {

using nlohmann::json;
using testing::changed;
using testing::import;
using testing::refusal;
using testing::small_llama;

json scaled(const json& scaling) { return changed(small_llama(), {{"rope_scaling", scaling}}); }
RopeSpec rope(const json& config) { return import(config).cache.class_of(0).rope; }

TEST_CASE("every form of rope_scaling is imported", "[unit]") {
  CHECK(rope(small_llama()) == RopeSpec{.base = 10000.0, .rotary_dim = 8});
  CHECK(rope(scaled({{"rope_type", "default"}})) == RopeSpec{.base = 10000.0, .rotary_dim = 8});
  const RopeSpec linear = rope(scaled({{"type", "linear"}, {"factor", 4.0}}));
  CHECK(linear == RopeSpec{.base = 10000.0, .rotary_dim = 8, .scaling = RopeScaling::linear, .factor = 4.0});
  const RopeSpec llama3 = rope(scaled({{"rope_type", "llama3"},
                                       {"factor", 8.0},
                                       {"low_freq_factor", 1.0},
                                       {"high_freq_factor", 4.0},
                                       {"original_max_position_embeddings", 8192}}));
  CHECK(llama3.scaling == RopeScaling::llama3);
  CHECK(llama3.factor == 8.0);
  CHECK(llama3.original_context == 8192.0);
  const RopeSpec yarn = rope(scaled({{"rope_type", "yarn"}, {"factor", 4.0}, {"truncate", false}, {"beta_fast", 16}}));
  CHECK(yarn.scaling == RopeScaling::yarn);
  CHECK(yarn.original_context == 512.0);  // absent: the trained context
  CHECK(yarn.beta_fast == 16.0);
  CHECK_FALSE(yarn.yarn_truncate);
  CHECK(yarn.attention_factor == 0.0);
  CHECK(rope(scaled({{"rope_type", "yarn"}, {"factor", 4.0}, {"attention_factor", 1.5}})).attention_factor == 1.5);
}

TEST_CASE("DeepSeek's two mscales make the factor on cos and sin their quotient", "[unit]") {
  const RopeSpec r = rope(scaled({{"type", "yarn"}, {"factor", 40.0}, {"mscale", 0.707}, {"mscale_all_dim", 0.707}}));
  CHECK(r.attention_factor == 1.0);
  const RopeSpec u = rope(scaled({{"type", "yarn"}, {"factor", 40.0}, {"mscale", 1.0}, {"mscale_all_dim", 0.5}}));
  CHECK(u.attention_factor == Approx(1.3688879454 / 1.1844439727).epsilon(1e-6));  // 0.1 ln 40 = 0.36888794
}

TEST_CASE("scalings that cached keys cannot follow are reported", "[unit]") {
  const Model dynamic = import(scaled({{"type", "dynamic"}, {"factor", 2.0}}));
  CHECK(dynamic.cache.class_of(0).rope.scaling == RopeScaling::none);
  CHECK(dynamic.warnings == std::vector<std::string>{"rope_scaling.type is \"dynamic\": its rotations change with the "
                                                     "context, so that rotated keys in a cache go stale; "
                                                     "imported without scaling"});
  const Model longrope =
      import(scaled({{"type", "longrope"}, {"short_factor", {1.0, 1.0}}, {"long_factor", {2.0, 3.0}}}));
  CHECK(longrope.warnings ==
        std::vector<std::string>{
            "rope_scaling.type is \"longrope\": factors for each channel are not modelled; imported without scaling"});
  CHECK(import(scaled({{"type", "mrope"}, {"mrope_section", {16, 24, 24}}})).warnings.empty());
}

TEST_CASE("a wrong rotary embedding is refused", "[unit]") {
  CHECK(refusal(scaled({{"rope_type", "spiral"}})) ==
        "rope_scaling.rope_type is \"spiral\", must be one of default, linear, dynamic, yarn, llama3, longrope, mrope");
  CHECK(refusal(scaled({{"rope_type", "linear"}})) == "rope_scaling.factor is missing, must be a number of at least 1");
  CHECK(refusal(scaled({{"rope_type", "linear"}, {"factor", 0.5}})) ==
        "rope_scaling.factor is 0.5, must be a number from 1 to 1000000000000");
  CHECK(refusal(scaled({{"rope_type", "llama3"}, {"factor", 8.0}})) ==
        "rope_scaling.original_max_position_embeddings is missing, must be the context before scaling");
  CHECK(refusal(scaled({{"rope_type", "llama3"},
                        {"factor", 8.0},
                        {"original_max_position_embeddings", 8192},
                        {"low_freq_factor", 4.0},
                        {"high_freq_factor", 4.0}})) ==
        "rope_scaling.high_freq_factor is 4, must be above low_freq_factor (4)");
  CHECK(refusal(scaled(json::array({1, 2}))) == "rope_scaling is [1,2], must be a JSON object");
  CHECK(refusal(changed(small_llama(), {{"rotary_dim", 10}})) ==
        "rotary_dim is 10, must be even and at most head_dim (8)");
  CHECK(refusal(changed(small_llama(), {{"rotary_dim", 3}})) ==
        "rotary_dim is 3, must be even and at most head_dim (8)");
  CHECK(refusal(changed(small_llama(), {{"partial_rotary_factor", 1.5}})) ==
        "partial_rotary_factor is 1.5, must be a number from 0 to 1");
}

TEST_CASE("partial rotation and the newer rope_parameters are understood", "[unit]") {
  CHECK(rope(changed(small_llama(), {{"partial_rotary_factor", 0.5}})).rotary_dim == 4);
  const json newer =
      changed(small_llama(),
              {{"rope_theta", nullptr},
               {"rope_parameters",
                {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 5e5}, {"partial_rotary_factor", 0.25}}}});
  CHECK(rope(newer) == RopeSpec{.base = 5e5, .rotary_dim = 2, .scaling = RopeScaling::linear, .factor = 2.0});
  const Model split = import(changed(
      small_llama(), {{"sliding_window", 16},
                      {"layer_types", {"sliding_attention", "full_attention", "sliding_attention", "full_attention"}},
                      {"rope_parameters",
                       {{"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
                        {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}}}}));
  CHECK(split.warnings.empty());
  CHECK(split.cache.class_of(1).rope.base == 1e6);
  CHECK(split.cache.class_of(1).rope.factor == 8.0);
  CHECK(split.cache.class_of(0).rope.base == 1e4);
  CHECK(split.cache.class_of(0).rope.scaling == RopeScaling::none);
}

}  // namespace
}  // namespace kvatlas::models
