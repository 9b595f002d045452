// transmla against the official conversion: outputs of the layer after the lost rotations, and of the converted layer.
#include <algorithm>

#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/attention_layer.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::vector<float> floats(const Matrix& m) { return linalg::to_array(m).values(); }

Conversion convert(const GoldenCase& golden, const CacheShape& shape, const TensorMap& weights, int rank) {
  const Method& m = find_method("transmla");
  // null switches the balance off in the official code; such a case keeps the full rank, where the balance cancels.
  const auto& ratio = golden.parameters().at("balance_kv_ratio");
  const ParamRow row{static_cast<double>(rank), golden.parameter<double>("qk_mqa_dim"), golden.parameter<double>("freqfold"),
                     ratio.is_null() ? 1.0 : ratio.get<double>()};
  return m.convert(row, shape, weights);
}

/// The part of the down-projection that makes the latent.
Matrix latent_rows(const Conversion& c) {
  const Matrix kv_a = matrix_of(c.weights, "kv_a");
  Matrix out(static_cast<std::size_t>(c.shape.classes.front().v_dim), kv_a.cols());
  for (std::size_t i = 0; i < out.rows(); ++i) std::ranges::copy(kv_a.row(i), out.row(i).begin());
  return out;
}

}  // namespace

TEST_CASE("a converted layer gives the outputs of the official conversion", "[golden]") {
  for (const GoldenCase& golden : golden_cases("transmla")) {
    CAPTURE(golden.name());
    const int d = golden.parameter<int>("head_dim"), heads = golden.parameter<int>("kv_heads");
    const CacheShape shape = uniform_shape(1, golden.parameter<int>("q_heads"), heads, d, Dtype::f32, {.rotary_dim = d});
    TensorMap weights;
    for (const char* name : {"w_q", "w_k", "w_v", "w_o", "calibration", "x"}) weights[name] = golden.floats(name);
    const Matrix x = matrix_of(weights, "x");
    // With all latent values only the lost rotations are left as a change.
    const int all = 2 * heads * d - golden.parameter<int>("qk_mqa_dim");
    check_bound(golden, "out_partial_rope", floats(converted_layer(x, convert(golden, shape, weights, all), shape.classes.front())));
    if (golden.parameters().at("balance_kv_ratio").is_null()) REQUIRE(golden.parameter<int>("kv_lora_rank") == all);
    const Conversion mla = convert(golden, shape, weights, golden.parameter<int>("kv_lora_rank"));
    check_bound(golden, "out_mla", floats(converted_layer(x, mla, shape.classes.front())));
    if (golden.has("kv_product")) {
      const Matrix down = latent_rows(mla);
      check_bound(golden, "kv_product", floats(linalg::matmul(matrix_of(mla.weights, "kv_b"), down)));
    }
  }
}
