// What the shipped descriptors derive, against what others printed.
#include "models/zoo.hpp"

#include <cstdlib>
#include <set>

#include "models/registry.hpp"
#include "tests/catch.hpp"

namespace kvatlas::models {
namespace {

struct Row {
  const char* slug;
  std::int64_t parameters;  // exact totals of the published tensors; 0 = see the printed figure in the zoo
  std::int64_t bytes_per_token;
  std::int64_t fixed_bytes;
  int layers;
};

// kv bytes: 2 tensors x layers x kv heads x head_dim x 2 bytes unless a comment says otherwise
constexpr Row kRows[] = {
    {"llama-2-7b", 6738415616, 524288, 0, 32},
    {"llama-2-13b", 13015864320, 819200, 0, 40},
    {"llama-2-70b", 68976648192, 327680, 0, 80},
    {"llama-3.1-8b", 8030261248, 131072, 0, 32},
    {"llama-3.1-70b", 70553706496, 327680, 0, 80},
    {"llama-3.2-1b", 1235814400, 32768, 0, 16},
    {"llama-3.2-3b", 3212749824, 114688, 0, 28},
    {"mistral-7b-v0.2", 7241732096, 131072, 0, 32},
    {"mistral-7b-v0.3", 7248023552, 131072, 0, 32},
    {"mixtral-8x7b", 46702792704, 131072, 0, 32},
    {"qwen2.5-7b", 7615616512, 57344, 0, 28},
    {"qwen2.5-32b", 32763876352, 262144, 0, 64},
    {"qwen2.5-72b", 72706203648, 327680, 0, 80},
    {"qwen3-8b", 8190735360, 147456, 0, 36},
    {"qwen3-32b", 32762123264, 262144, 0, 64},
    {"qwen3-30b-a3b", 30532122624, 98304, 0, 48},
    {"yi-6b-200k", 6061035520, 65536, 0, 32},
    {"yi-9b-200k", 8829407232, 98304, 0, 48},
    {"yi-34b-200k", 34388917248, 245760, 0, 60},
    {"gemma-3-270m", 268098176, 3 * 1024, 15 * 512 * 1024, 18},                   // 3 of 18 layers see everything
    {"gemma-3-4b", 3880263168, 5 * 4096, 29 * 1024 * 4096, 34},                   // 5 of 34
    {"gemma-3-27b", 27009346304, 10 * 8192, std::int64_t{52} * 1024 * 8192, 62},  // 10 of 62
    {"smollm2-135m", 134515008, 23040, 0, 30},
    {"deepseek-v3", 671026419200, 70272, 0, 61},     // 576 values of 2 bytes a layer
    {"deepseek-v3.2", 0, 61 * (1152 + 132), 0, 61},  // and an index row of 132 bytes
    {"gpt-oss-20b", 20914757184, 24576, 3145728, 24},
    {"gpt-oss-120b", 116829156672, 36864, 4718592, 36},
    {"qwen3-next-80b-a3b", 0, 12 * 2048, 36 * (2097152 + 49152), 48},  // 4 layers: 1 full, 3 states
    {"kimi-linear-48b-a3b", 0, 7 * 1152, 20 * (2097152 + 73728), 27},
    {"lwm-7b-1m", 6738415616, 524288, 0, 32},
    {"gpt-j-6b", 6050882784, 458752, 0, 28},
    {"mpt-7b", 6649286656, 524288, 0, 32},
};

TEST_CASE("the zoo holds the models that the tests know, and no others", "[unit]") {
  REQUIRE(all_models().size() == std::size(kRows));
  REQUIRE(zoo_files().size() == std::size(kRows));
}

TEST_CASE("parameters and cache bytes of the zoo equal the known figures", "[unit]") {
  for (const Row& row : kRows) {
    CAPTURE(row.slug);
    const Model& m = find_model(row.slug);
    if (row.parameters != 0) CHECK(parameters(m) == row.parameters);
    CHECK(kv_bytes_per_token(m) == Bytes(row.bytes_per_token));
    CHECK(fixed_cache_bytes(m) == Bytes(row.fixed_bytes));
    CHECK(layers(m) == row.layers);
  }
}

TEST_CASE("derived figures round to the published ones", "[unit]") {
  int compared = 0;
  for (const Model& m : all_models()) {
    CAPTURE(m.slug);
    if (const auto& p = m.published_parameters) {
      CHECK_FALSE(p->source.empty());
      CHECK(2 * std::llabs(parameters(m) + m.published_elsewhere - p->value) <= (p->rounding == 1 ? 0 : p->rounding));
      ++compared;
    }
    if (const auto& p = m.published_kv_bytes_per_token) CHECK(kv_bytes_per_token(m) == Bytes(p->value));
    if (const auto& p = m.published_kv_bytes_per_token_fp8_latent)
      CHECK(kv_bytes_per_token_fp8_latent(m) == Bytes(p->value));
  }
  REQUIRE(compared >= 31);
}

// Makers count active weights with or without embedding and head: the printed figure lies between both counts.
TEST_CASE("published active parameters lie between the counts without and with the ends", "[unit]") {
  int compared = 0;
  for (const Model& m : all_models()) {
    const auto& p = m.published_active_parameters;
    if (!p) continue;
    CAPTURE(m.slug, active_parameters(m));
    std::int64_t ends = 0;
    for (const MatMul& e : m.ends) ends += e.values();
    CHECK(active_parameters(m) - ends - p->rounding / 2 <= p->value);
    CHECK(p->value <= active_parameters(m) + p->rounding / 2);
    ++compared;
  }
  REQUIRE(compared == 7);
  // gpt-oss counts the head and not the embedding, to the printed digit
  for (const auto& [slug, printed] : {std::pair{"gpt-oss-20b", 361}, std::pair{"gpt-oss-120b", 513}}) {
    const Model& m = find_model(slug);
    CHECK((active_parameters(m) - m.ends[0].values() + 5'000'000) / 10'000'000 == printed);
  }
}

TEST_CASE("V3.2 at fp8 and the checkpoint sizes of gpt-oss are the published ones", "[unit]") {
  REQUIRE(kv_bytes_per_token_fp8_latent(find_model("deepseek-v3.2")) == Bytes(48068));
  const auto gib = [](const char* slug) {
    const Model& m = find_model(slug);
    return static_cast<double>(weight_bytes(m, m.native_bits).value) / (1 << 30);
  };
  CHECK(gib("gpt-oss-120b") == Approx(60.8).margin(0.15));  // arXiv 2508.10925 table 1
  CHECK(gib("gpt-oss-20b") == Approx(12.8).margin(0.05));
}

TEST_CASE("every shipped config is understood whole and has a source and unique names", "[unit]") {
  std::set<std::string> names;
  for (const Model& m : all_models()) {
    CAPTURE(m.slug, m.warnings);
    CHECK(m.warnings.empty());
    CHECK_FALSE(m.source.empty());
    CHECK(m.trained_context.has_value());
    CHECK_FALSE(why_not(m.cache).has_value());
    CHECK(names.insert(m.slug).second);
    for (const std::string& alias : m.aliases) CHECK(names.insert(alias).second);
  }
}

TEST_CASE("classes and groups of every model name each layer once", "[unit]") {
  for (const Model& m : all_models()) {
    CAPTURE(m.slug);
    std::set<int> cached, weighted;
    for (const LayerClass& c : m.cache.classes)
      for (const int l : c.layers) CHECK(cached.insert(l).second);
    for (const LayerGroup& g : m.groups)
      for (const int l : g.layers) CHECK(weighted.insert(l).second);
    CHECK(cached == weighted);
    CHECK(*weighted.rbegin() == layers(m) - 1);
  }
}

TEST_CASE("windows, sinks, states and positions are where the models have them", "[unit]") {
  const Model& oss = find_model("gpt-oss-20b");
  REQUIRE(oss.cache.classes.size() == 2);
  REQUIRE(oss.cache.class_of(0).window == Tokens(128));
  REQUIRE(oss.cache.class_of(1).window == Tokens(0));
  REQUIRE(oss.cache.class_of(0).attention_sink);
  REQUIRE_FALSE(oss.cache.class_of(1).rope.yarn_truncate);

  const Model& gemma = find_model("gemma-3-270m");
  REQUIRE(gemma.cache.class_of(5).layers == std::vector<int>{5, 11, 17});
  REQUIRE(gemma.cache.class_of(5).rope.base == 1e6);
  REQUIRE(gemma.cache.class_of(4).rope.base == 1e4);
  REQUIRE(gemma.cache.class_of(4).window == Tokens(512));
  REQUIRE(gemma.qk_norm);
  REQUIRE(find_model("gemma-3-27b").cache.class_of(5).score_scale == 1.0 / std::sqrt(168.0));
  REQUIRE(find_model("gemma-3-4b").cache.class_of(5).rope.factor == 8.0);
  REQUIRE(find_model("gemma-3-4b").cache.class_of(4).rope.scaling == RopeScaling::none);

  const Model& next = find_model("qwen3-next-80b-a3b");
  REQUIRE(next.cache.class_of(3).rope.rotary_dim == 64);
  REQUIRE(next.cache.class_of(0).kind == RowKind::state);
  REQUIRE(next.cache.class_of(0).state == Bytes(2097152 + 49152));

  const Model& kimi = find_model("kimi-linear-48b-a3b");
  REQUIRE(kimi.cache.class_of(3).kind == RowKind::latent);
  REQUIRE(kimi.cache.class_of(3).rope.rotary_dim == 0);  // no positional encoding beside the recurrence
  REQUIRE(kimi.cache.class_of(3).layers == std::vector<int>{3, 7, 11, 15, 19, 23, 26});

  const Model& mpt = find_model("mpt-7b");
  REQUIRE(mpt.cache.class_of(0).alibi);
  REQUIRE(mpt.cache.class_of(0).rope.rotary_dim == 0);
  const Model& gptj = find_model("gpt-j-6b");
  REQUIRE(gptj.cache.class_of(0).rope.rotary_dim == 64);
  REQUIRE(gptj.cache.class_of(0).rope.layout == RopeLayout::interleaved);
  REQUIRE(gptj.cache.dtype == Dtype::f16);

  const LayerClass& v32 = find_model("deepseek-v3.2").cache.class_of(0);
  REQUIRE(v32.index_dim == 128);
  REQUIRE(v32.index_bytes == 132.0);
  REQUIRE(v32.index_top_k == 2048);
  REQUIRE(v32.rope.first_channel == 512);
  REQUIRE(v32.rope.attention_factor == 1.0);
  // 192^-1/2 times (0.1 ln 40 + 1)^2 = 0.0721688 * 1.8738522
  REQUIRE(v32.score_scale == Approx(0.135233779).epsilon(1e-6));
}

}  // namespace
}  // namespace kvatlas::models
