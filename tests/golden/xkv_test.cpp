// xkv against the official code: products of the factors and singular values; factors themselves are not unique.
#include <algorithm>
#include <cmath>

#include "core/formats/dtype.hpp"
#include "core/linalg/svd.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::vector<float> stored(const std::vector<NamedBuffer>& buffers, const std::string& name) {
  const auto& bytes = find_buffer(buffers, name).bytes;
  std::vector<float> values(bytes.size() / 4);
  num::load(Dtype::f32, bytes, values);
  return values;
}

}  // namespace

TEST_CASE("xkv golden: rebuilt keys and values and all singular values are the official ones to their bound", "[golden]") {
  int compared = 0;
  for (const GoldenCase& golden : golden_cases("xkv")) {
    CAPTURE(golden.name());
    const auto layers = golden.parameter<std::int64_t>("layers"), heads = golden.parameter<std::int64_t>("kv_heads");
    const auto tokens = golden.parameter<std::int64_t>("tokens"), dim = golden.parameter<std::int64_t>("head_dim");
    const auto group = golden.parameter<std::int64_t>("group_size");
    const CacheShape shape = uniform_shape(static_cast<int>(layers), static_cast<int>(heads), static_cast<int>(heads), static_cast<int>(dim), Dtype::f32);
    const MethodChoice choice = parse_choice(cat("xkv:group_layers=", group, ",rank_k=", golden.parameter<int>("rank_k"), ",rank_v=", golden.parameter<int>("rank_v")));
    const auto cache = choice.method->open(choice.row, shape, {});
    // A side that the selection left out is fed zeros.
    const Array zeros({layers, heads, tokens, dim});
    const NamedTensor k = golden.has("k") ? golden.floats("k") : NamedTensor{}, v = golden.has("v") ? golden.floats("v") : NamedTensor{};
    const View<const float> keys = golden.has("k") ? view_of(k, {layers, heads, tokens, dim}) : zeros.view();
    const View<const float> values = golden.has("v") ? view_of(v, {layers, heads, tokens, dim}) : zeros.view();
    std::vector<std::int64_t> positions;
    for (std::int64_t i = 0; i < tokens; ++i) positions.push_back(i);
    Array out({heads, tokens, dim});
    for (std::int64_t l = 0; l < layers; ++l)
      cache->forward(static_cast<int>(l), {.q = keys[l], .k = keys[l], .v = values[l], .positions = {positions.data(), {tokens}}}, out.view());
    cache->end_prefill();
    const auto buffers = cache->buffers();

    const NamedTensor sigma = golden.floats("singular_values");
    std::vector<float> ours(sigma.values.size(), 0.0F);
    const std::int64_t width = sigma.dims.back();
    for (const bool key : {true, false}) {
      if (!golden.has(key ? "k" : "v")) continue;
      const auto rank = golden.parameter<std::int64_t>(key ? "rank_k" : "rank_v");
      std::vector<float> rebuilt(static_cast<std::size_t>(layers * heads * tokens * dim));
      for (std::int64_t first = 0; first < layers; first += group) {
        const std::int64_t count = std::min(group, layers - first), cols = count * heads * dim, r = std::min({rank, tokens, cols});
        const std::string prefix = cat("group", first, key ? "/k_" : "/v_");
        const auto a = stored(buffers, prefix + "coefficients"), b = stored(buffers, prefix + "basis");
        REQUIRE(static_cast<std::int64_t>(a.size()) == tokens * r);
        REQUIRE(static_cast<std::int64_t>(b.size()) == r * cols);
        linalg::Matrix whole(static_cast<std::size_t>(tokens), static_cast<std::size_t>(cols));
        for (std::int64_t c = 0; c < cols; ++c) {
          const std::int64_t layer = first + c / (heads * dim), head = c / dim % heads;
          for (std::int64_t t = 0; t < tokens; ++t) {
            whole(static_cast<std::size_t>(t), static_cast<std::size_t>(c)) = static_cast<double>((key ? keys : values)[layer](head, t, c % dim));
            double sum = 0;
            for (std::int64_t j = 0; j < r; ++j)
              sum += static_cast<double>(a[static_cast<std::size_t>(t * r + j)]) * static_cast<double>(b[static_cast<std::size_t>(j * cols + c)]);
            rebuilt[static_cast<std::size_t>(((layer * heads + head) * tokens + t) * dim + c % dim)] = static_cast<float>(sum);
          }
        }
        const linalg::Svd svd = linalg::jacobi_svd(whole);
        const std::int64_t call = 2 * (first / group) + (key ? 0 : 1);
        for (std::size_t i = 0; i < svd.sigma.size(); ++i) ours[static_cast<std::size_t>(call * width) + i] = static_cast<float>(svd.sigma[i]);
      }
      const double largest = static_cast<double>(*std::max_element(sigma.values.begin(), sigma.values.end()));
      const char* array = key ? "k_out" : "v_out";
      check_bound(golden, array, rebuilt, {.atol = golden.tolerance(array).at("of_max_singular_value").get<double>() * largest});
      ++compared;
    }
    // Rows of a side that was left out cannot be computed: theirs stand in.
    for (std::int64_t call = 0; call < sigma.dims.front(); ++call)
      if (!golden.has(call % 2 == 0 ? "k" : "v"))
        std::copy_n(sigma.values.begin() + call * width, width, ours.begin() + call * width);
    check_bound(golden, "singular_values", ours);
  }
  REQUIRE(compared >= 4);
}
