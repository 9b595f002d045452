#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::unique_ptr<SideStore> store_of(const std::string& recipe, Side side, int dim) {
  const MethodChoice m = parse_choice(recipe);
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = dim, .v_dim = dim, .layers = {0}};
  return m.method->open_side(m.row, c, 0, side, Dtype::f32);
}

double error_of(const SideStore& store, const Array& rows) {
  Array out({rows.view().dim(1), rows.view().dim(2)});
  store.read(0, 0, out.view());
  double sum = 0;
  for (std::size_t i = 0; i < out.values().size(); ++i) sum += std::fabs(static_cast<double>(out.values()[i]) - static_cast<double>(rows.values()[i]));
  return sum;
}

}  // namespace

TEST_CASE("arcquant: a block by hand, and the second pass over its error", "[unit]") {
  // Largest value 2688: tensor scale 1, block scale 448; 448 * {6, 3, 1, 0.5, ...} is exact, 448 * 1.2 codes as 448 * 1.
  Array rows({1, 1, 16});
  rows.values() = {2688, 1344, 448, 224, 537.6F, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -2688};
  const auto plain = store_of("arcquant:residual_channels=0", Side::key, 16), twice = store_of("arcquant", Side::key, 16);
  plain->append(rows.view());
  plain->settle(true);
  twice->append(rows.view());
  twice->settle(true);
  Array out({1, 16});
  plain->read(0, 0, out.view());
  CHECK(out.values() == std::vector<float>{2688, 1344, 448, 224, 448, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -2688});
  twice->read(0, 0, out.view());
  // The error 89.6 is the largest of its block: scale E4M3(14.93) = 15, code 6, so 90 comes back on top of 448.
  CHECK(out.values() == std::vector<float>{2688, 1344, 448, 224, 538, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -2688});
}

TEST_CASE("arcquant: residual channels are those of largest magnitude and lower the error", "[unit]") {
  Array rows({1, 50, 32});
  Random random(2);
  for (std::int64_t i = 0; i < 50; ++i)
    for (std::int64_t c = 0; c < 32; ++c) rows.view()(0, i, c) = random.normal() * (c % 2 == 0 ? 8.0F : 1.0F);
  const auto plain = store_of("arcquant:residual_channels=0", Side::key, 32), twice = store_of("arcquant", Side::key, 32);
  for (SideStore* s : {plain.get(), twice.get()}) {
    s->append(rows.view());
    s->settle(true);
  }
  CHECK(error_of(*twice, rows) < 0.5 * error_of(*plain, rows));
  std::vector<NamedBuffer> buffers;
  twice->buffers("", buffers);
  const auto& channels = find_buffer(buffers, "channels").bytes;
  REQUIRE(channels.size() == 32);
  for (std::size_t i = 0; i < 16; ++i) CHECK(std::to_integer<int>(channels[2 * i]) == static_cast<int>(2 * i));
}

TEST_CASE("arcquant: zeros decode to zeros", "[unit]") {
  const auto store = store_of("arcquant", Side::key, 16);
  store->append(Array({1, 3, 16}).view());
  store->settle(true);
  Array out({3, 16}, 1.0F);
  store->read(0, 0, out.view());
  CHECK(out.values() == std::vector<float>(48, 0.0F));
}

TEST_CASE("arcquant: 5.0625 bits a key value and 4.5 a value at 16 of 128 channels", "[unit]") {
#ifndef KVATLAS_POISON_FORMULAS
  const MethodChoice m = parse_choice("arcquant");
  const CacheShape shape = uniform_shape(1, 2, 2, 128, Dtype::bf16);
  const Ledger ledger = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(1000)});
  const auto bits = [&](Side side) { return 8.0 * static_cast<double>((ledger.of("codes", side) + ledger.of("scales", side)).value) / (1000 * 256); };
  CHECK(bits(Side::key) == 5.0625);
  CHECK(bits(Side::value) == 4.5);
#endif
}

TEST_CASE("arcquant: channels that blocks do not fill are refused", "[unit]") {
  const MethodChoice m = parse_choice("arcquant:residual_channels=8");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 2, 1, 64, Dtype::bf16)) == "residual_channels is 8, must be a multiple of 16");
}

TEST_CASE("arcquant: a file names each channel of a head once", "[unit]") {
  const MethodChoice m = parse_choice("arcquant");
  const CacheShape shape = uniform_shape(1, 2, 2, 32, Dtype::f32);
  TensorMap file;
  NamedTensor& channels = file["layer0.k_channels"];
  channels.dims = {2, 16};
  for (int i = 0; i < 32; ++i) channels.values.push_back(static_cast<float>(i % 16 * 2));  // both heads alike
  CHECK_NOTHROW(m.method->open(m.row, shape, {.trained = &file}));
  channels.values[31] = 4;
  CHECK_THROWS_WITH(m.method->open(m.row, shape, {.trained = &file}), "tensor \"layer0.k_channels\" names channel 4 twice in one head");
  channels.values[31] = 32;
  CHECK_THROWS_WITH(m.method->open(m.row, shape, {.trained = &file}), "tensor \"layer0.k_channels\" holds 32, must hold channels below 32");
}
