// transmla: rewrites that lose nothing, the absorbed form through a cache, bytes and plans of the new shape, refusals.
#include <cmath>

#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/architecture/transmla/steps.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/attention_layer.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;
using linalg::Matrix;

namespace {

const Method& method() { return find_method("transmla"); }

/// kv_lora_rank, qk_rope_dim, freqfold, balance_ratio
ParamRow row(int rank, int rope_dim, int freqfold, double balance = 1.0) {
  return {static_cast<double>(rank), static_cast<double>(rope_dim), static_cast<double>(freqfold), balance};
}

CacheShape shape_of(int q_heads, int kv_heads, int d, RopeLayout layout = RopeLayout::half_split) {
  return uniform_shape(1, q_heads, kv_heads, d, Dtype::f32, {.rotary_dim = d, .layout = layout});
}

std::string refusal(const ParamRow& r, const CacheShape& shape) { return method().why_not(r, shape).value_or(""); }

std::string thrown(const CacheShape& shape, const TensorMap& weights, const ParamRow& r = row(0, 8, 2)) {
  try {
    method().convert(r, shape, weights);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("merged heads and the rotation of rotary pairs leave all scores as they were", "[unit]") {
  for (const RopeLayout layout : {RopeLayout::half_split, RopeLayout::interleaved}) {
    const CacheShape shape = shape_of(4, 2, 16, layout);
    const LayerClass& c = shape.classes.front();
    const TensorMap weights = random_layer(c, 24, 60, 5);
    const Matrix w_q = matrix_of(weights, "w_q"), w_k = matrix_of(weights, "w_k");
    // Rotated channels are stretches of rope_dim = head_dim with the pairs of one head in each, so one table serves.
    const to_latent::Widths w{.q_heads = 4, .kv_heads = 2, .k_dim = 16, .v_dim = 16, .rope_dim = 16, .freqfold = 1, .layout = layout};
    const Matrix keys = linalg::matmul(matrix_of(weights, "calibration"), linalg::transpose(w_k));
    const Matrix rotation = to_latent::rope_rotation(w, keys);
    CHECK(distance(linalg::matmul(rotation, linalg::transpose(rotation)), Matrix::identity(32)) < 1e-12);
    const to_latent::RotatedKeys rotated = to_latent::rotate_keys(w, rotation, w_k);
    // Step 0: up times project is the key projection of every query head.
    const Matrix product = linalg::matmul(rotated.up, rotated.project);
    for (std::size_t q = 0; q < 4; ++q)
      CHECK(distance(to_latent::rows_of(product, q * 16, 16), to_latent::rows_of(w_k, q / 2 * 16, 16)) < 1e-12);

    const RopeTable before(c.rope), after({.rotary_dim = 16, .layout = RopeLayout::interleaved});
    const Matrix x = random_inputs(2, 24, 6);
    const Matrix latent = linalg::matmul(x, linalg::transpose(rotated.project));
    const std::int64_t positions[] = {37, 11};
    for (std::size_t q = 0; q < 4; ++q) {
      const Matrix wq = to_latent::rows_of(w_q, q * 16, 16), wk = to_latent::rows_of(w_k, q / 2 * 16, 16);
      const Matrix query = linalg::matmul(x, linalg::transpose(wq)), key = linalg::matmul(x, linalg::transpose(wk));
      const Matrix query_latent = linalg::matmul(query, to_latent::rows_of(rotated.up, q * 16, 16));
      const auto rotate = [&](const RopeTable& table, const Matrix& rows, std::size_t t, std::size_t first) {
        std::vector<float> part(16);
        for (std::size_t i = 0; i < 16; ++i) part[i] = static_cast<float>(rows(t, first + i));
        table.apply(part, positions[t]);
        return part;
      };
      double original = 0, rewritten = 0;
      const auto a = rotate(before, query, 0, 0), b = rotate(before, key, 1, 0);
      for (std::size_t i = 0; i < 16; ++i) original += static_cast<double>(a[i]) * static_cast<double>(b[i]);
      for (const std::size_t stretch : {std::size_t{0}, std::size_t{16}}) {
        const auto u = rotate(after, query_latent, 0, stretch), v = rotate(after, latent, 1, stretch);
        for (std::size_t i = 0; i < 16; ++i) rewritten += static_cast<double>(u[i]) * static_cast<double>(v[i]);
      }
      CHECK(rewritten == Approx(original).epsilon(1e-5).margin(1e-5));
    }
  }
}

TEST_CASE("one kv head with all rotations and the full rank is the original layer", "[unit]") {
  for (const bool biases : {false, true}) {
    const CacheShape shape = shape_of(4, 1, 16);
    const LayerClass& c = shape.classes.front();
    const TensorMap weights = random_layer(c, 24, 60, 15, biases);
    const Matrix x = random_inputs(20, 24, 16);
    const Conversion mla = method().convert(row(16, 16, 1), shape, weights);
    CHECK(distance(converted_layer(x, mla, c), original_layer(x, weights, c)) < 1e-5);
    CHECK(mla.weights.contains("q_bias") == biases);
  }
}

TEST_CASE("equal kv heads need the rotations of one head only", "[unit]") {
  const CacheShape shape = shape_of(4, 2, 16);
  const LayerClass& c = shape.classes.front();
  TensorMap weights = random_layer(c, 24, 60, 25);
  std::vector<float>& keys = weights["w_k"].values;
  std::copy_n(keys.begin(), keys.size() / 2, keys.begin() + static_cast<std::ptrdiff_t>(keys.size() / 2));
  const Matrix x = random_inputs(20, 24, 26);
  const Conversion mla = method().convert(row(2 * 32 - 16, 16, 1), shape, weights);
  CHECK(distance(converted_layer(x, mla, c), original_layer(x, weights, c)) < 1e-5);
  // Random heads do lose something there.
  const TensorMap other = random_layer(c, 24, 60, 27);
  CHECK(distance(converted_layer(x, method().convert(row(48, 16, 1), shape, other), c), original_layer(x, other, c)) > 1e-3);
}

TEST_CASE("the full rank does not depend on the balance, a smaller one loses more and more", "[unit]") {
  const CacheShape shape = shape_of(4, 2, 16);
  const LayerClass& c = shape.classes.front();
  const TensorMap weights = random_layer(c, 64, 200, 35);
  const Matrix x = random_inputs(16, 64, 36);
  const Matrix all = converted_layer(x, method().convert(row(56, 8, 2), shape, weights), c);
  CHECK(distance(converted_layer(x, method().convert(row(56, 8, 2, 3.0), shape, weights), c), all) < 1e-5);
  const double at40 = distance(converted_layer(x, method().convert(row(40, 8, 2), shape, weights), c), all);
  const double at10 = distance(converted_layer(x, method().convert(row(10, 8, 2), shape, weights), c), all);
  CHECK(at40 > 1e-4);
  CHECK(at10 > at40);
}

TEST_CASE("absorbed decode through the full cache equals the converted layer's own forward pass", "[unit]") {
  for (const auto& [rank, rope_dim, freqfold] : {std::tuple{24, 8, 2}, {56, 8, 4}, {12, 16, 1}, {0, 4, 4}}) {
    CAPTURE(rank, rope_dim, freqfold);
    const CacheShape shape = shape_of(4, 2, 16);
    const LayerClass& c = shape.classes.front();
    const Conversion mla = method().convert(row(rank, rope_dim, freqfold), shape, random_layer(c, 24, 60, 45));
    const LayerClass& latent = mla.shape.classes.front();
    CHECK(latent.kind == RowKind::latent);
    CHECK(latent.score_scale == 1.0 / std::sqrt(16.0 + rope_dim));
    const Matrix x = random_inputs(80, 24, 46);
    const auto cache = find_method("full").open({}, mla.shape, {});
    CHECK(distance(absorbed_layer(x, mla, c, *cache, 70), converted_layer(x, mla, c)) < 1e-5);
    // Formula and live buffers of the converted cache agree.
    const Ledger formula = method().ledger_formula(row(rank, rope_dim, freqfold), shape, {.prompt = Tokens(70), .generated = Tokens(10)}, {});
    CHECK(formula.total() == count_ledger(cache->buffers()).total());
    CHECK(formula.total().value == 80 * 4 * std::int64_t{latent.k_dim});
  }
}

TEST_CASE("frequencies of the kept rotations are those of every second, fourth ... pair", "[unit]") {
  for (const RopeSpec& rope : {RopeSpec{.rotary_dim = 64}, RopeSpec{.rotary_dim = 64, .scaling = RopeScaling::ntk, .factor = 4.0},
                               RopeSpec{.rotary_dim = 64, .scaling = RopeScaling::linear, .factor = 2.0},
                               RopeSpec{.base = 500000.0, .rotary_dim = 64, .scaling = RopeScaling::llama3, .factor = 8.0, .original_context = 8192}}) {
    const CacheShape shape = uniform_shape(1, 2, 1, 64, Dtype::f32, rope);
    const Conversion mla = method().convert(row(8, 16, 4), shape, random_layer(shape.classes.front(), 8, 10, 1));
    const auto old = rope_frequencies(rope), kept = rope_frequencies(mla.shape.classes.front().rope);
    REQUIRE(kept.size() == 8);
    for (std::size_t i = 0; i < kept.size(); ++i) CHECK(kept[i] == Approx(old[4 * i]).epsilon(1e-12));
  }
}

TEST_CASE("a converted Llama-2-7B keeps 576 values of 8192, 93 percent less, and reads each row once", "[unit]") {
  const CacheShape shape = uniform_shape(32, 32, 32, 128, Dtype::bf16, {.rotary_dim = 128});
  const History h{.prompt = Tokens(1000)};
  const Ledger ledger = method().ledger_formula(row(512, 64, 8), shape, h, {});
  CHECK(ledger.total().value == 32LL * 1000 * 1152);
  CHECK(dense_ledger(shape, h).total().value == 32LL * 1000 * 16384);
  CHECK(1.0 - static_cast<double>(ledger.total().value) / (32.0 * 1000 * 16384) == Approx(0.9297).margin(1e-4));
  // Attention reads the rows once for all heads; queries and partial results come on top.
  const History far{.prompt = Tokens(100000)};
  const Plan plan = method().decode_plan(row(512, 64, 8), shape, far, {});
  CHECK(plan.read_bytes() > 32.0 * 100000 * 1152);
  CHECK(plan.read_bytes() < 1.1 * 32.0 * 100000 * 1152);
  CHECK(method().decode_plan(row(0, 64, 8), shape, far, {}).read_bytes() == plan.read_bytes());
}

TEST_CASE("settings and tensors that cannot be are refused in one sentence", "[unit]") {
  const CacheShape shape = shape_of(4, 2, 16);
  CHECK(refusal(row(0, 8, 2), shape) == "");
  CHECK(refusal(row(57, 8, 2), shape) == "kv_lora_rank is 57, must be at most the keys and values beside the rotary key (56)");
  CHECK(refusal(row(8, 6, 2), shape) == "qk_rope_dim is 6, must be even and divide head_dim (16)");
  CHECK(refusal(row(8, 4, 2), shape) == "freqfold is 2, must be a multiple of head_dim / qk_rope_dim (4) and divide head_dim / 2 (8)");
  CacheShape odd = shape;
  odd.classes[0].rope.rotary_dim = 8;
  CHECK(refusal(row(8, 8, 2), odd) == "rotary_dim is 8, must be head_dim (16): every key channel belongs to a rotary pair");
  odd = shape;
  odd.classes[0].kind = RowKind::latent;
  CHECK(refusal(row(8, 8, 2), odd) == "layers already cache latent rows; there is nothing to convert");
  odd = shape;
  odd.classes[0].rope.scaling = RopeScaling::yarn;
  odd.classes[0].rope.factor = 1.0;
  odd.classes[0].rope.original_context = 4096;
  CHECK(refusal(row(8, 8, 2), odd) == "qk_rope_dim is 8, must be head_dim (16) with yarn scaling, whose ramp counts rotary pairs");

  const TensorMap good = random_layer(shape.classes.front(), 24, 30, 3);
  CHECK(thrown(shape, good) == "");
  TensorMap bad = good;
  bad.erase("w_v");
  CHECK(thrown(shape, bad) == "weights have no tensor \"w_v\"");
  bad = good;
  bad.erase("calibration");
  CHECK(thrown(shape, bad) == "weights have no tensor \"calibration\" of layer inputs [..., hidden]");
  bad = good;
  bad["w_k"].dims = {16, 48};
  CHECK(thrown(shape, bad) == "w_k must be [32, 24]");
  bad = good;
  bad["b_q"] = {{64}, std::vector<float>(64, 0.0F)};
  CHECK(thrown(shape, bad) == "weights have 1 of the biases b_q, b_k, b_v, must have all three or none");
  bad = good;
  bad["w_q"].values[5] = std::nanf("");
  CHECK(thrown(shape, bad).find("must be finite") != std::string::npos);
  CHECK(thrown(shape, good, row(57, 8, 2)).starts_with("transmla: kv_lora_rank is 57"));
}
