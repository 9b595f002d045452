#include <array>
#include <cstring>
#include <limits>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;

namespace {

/// One row of four values through the key store of one head.
struct Int8Rows {
  std::vector<int> codes;
  float scale = 0;
  std::vector<float> decoded;
};

Int8Rows stored_int8_pth(const std::string& text, std::array<float, 4> row) {
  const MethodChoice m = parse_choice(text);
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = 4, .v_dim = 4, .layers = {0}};
  const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f32);
  Array in({1, 1, 4}), out({1, 4});
  std::copy(row.begin(), row.end(), in.values().begin());
  store->append(in.view());
  store->read(0, 0, out.view());
  std::vector<NamedBuffer> buffers;
  store->buffers("k_", buffers);
  Int8Rows s{.codes = {}, .scale = 0, .decoded = out.values()};
  for (const std::byte b : buffers.at(0).bytes) s.codes.push_back(static_cast<std::int8_t>(b));
  std::memcpy(&s.scale, buffers.at(1).bytes.data(), 4);
  return s;
}

}  // namespace

TEST_CASE("int8_pth: by hand, scale 1/127 of the largest, codes nearest even or truncated", "[unit]") {
  const Int8Rows near = stored_int8_pth("int8_pth", {127.0F, -63.6F, 0.5F, 1.5F});
  CHECK(near.scale == 1.0F);
  CHECK(near.codes == std::vector<int>{127, -64, 0, 2});
  CHECK(near.decoded == std::vector<float>{127, -64, 0, 2});
  CHECK(stored_int8_pth("int8_pth:rounding=truncate", {127.0F, -63.6F, 0.5F, 1.5F}).codes == std::vector<int>{127, -63, 0, 1});
}

TEST_CASE("int8_pth: zeros decode to zeros, tiny rows keep the smallest scale", "[unit]") {
  const Int8Rows zeros = stored_int8_pth("int8_pth", {0, 0, -0.0F, 0});
  CHECK(zeros.scale == 1e-6F);
  CHECK(zeros.decoded == std::vector<float>{0, 0, 0, 0});
  CHECK(stored_int8_pth("int8_pth", {1e-7F, 0, 0, 0}).decoded == std::vector<float>{0, 0, 0, 0});
}

TEST_CASE("int8_pth: 8.25 bits a value at head_dim 128, windows cut", "[unit]") {
  const MethodChoice m = parse_choice("int8_pth");
  CacheShape shape = uniform_shape(2, 8, 2, 128, Dtype::bf16, {.rotary_dim = 128});
  CHECK(8.0 * static_cast<double>(formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(100)}).total().value) / (100 * 2 * 2 * 256) == 8.25);
  shape.classes[0].window = Tokens(10);
  CHECK(formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(100)}).total().value == 10 * 2 * 2 * (256 + 8));
}

TEST_CASE("int8_pth: codes and scales that do not match are refused, and the store stays as it was", "[unit]") {
  const MethodChoice m = parse_choice("int8_pth");
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = 4, .v_dim = 4, .layers = {0}};
  const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f32), other = m.method->open_side(m.row, c, 0, Side::key, Dtype::f32);
  store->append(Array({1, 2, 4}, 1.0F).view());
  other->append(Array({1, 5, 4}, 3.0F).view());
  std::vector<NamedBuffer> before, saved, after;
  store->buffers("k_", before);
  other->buffers("k_", saved);
  for (NamedBuffer& b : saved)
    if (b.component == "scales") b.bytes.resize(16);
  CHECK_THROWS_WITH(store->load("k_", saved), "codes, scales and zeros of head 0 have 20, 16 and 0 bytes, must be whole blocks of 1 rows of 4 values");
  store->buffers("k_", after);
  CHECK(test::digest(after) == test::digest(before));
}

TEST_CASE("int8_pth: a loaded scale that is negative or not finite is refused, and the store stays as it was", "[unit]") {
  const MethodChoice m = parse_choice("int8_pth");
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = 4, .v_dim = 4, .layers = {0}};
  const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f32);
  store->append(Array({1, 2, 4}, 1.0F).view());
  std::vector<NamedBuffer> before, after;
  store->buffers("k_", before);
  for (const float scale : {-1.0F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    auto saved = before;
    for (NamedBuffer& b : saved)
      if (b.component == "scales") std::memcpy(b.bytes.data() + 4, &scale, 4);
    CHECK_THROWS_WITH(store->load("k_", saved), cat("scale 1 of head 0 is ", scale, ", must be finite and not negative"));
  }
  store->buffers("k_", after);
  CHECK(test::digest(after) == test::digest(before));
}
