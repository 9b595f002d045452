#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/quantization/gear/coder.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

Array normal_rows(std::int64_t heads, std::int64_t n, std::int64_t dim) {
  Array rows({heads, n, dim});
  Random random(8);
  for (float& f : rows.values()) f = random.normal();
  return rows;
}

double error_of(const gear_parts::Settings& s, const Array& rows) {
  const gear_parts::Block block = gear_parts::encode_block(s, rows.view(), true, {});
  double sum = 0;
  for (int h = 0; h < s.kv_heads; ++h) {
    Array out({rows.view().dim(1), s.dim});
    gear_parts::decode_block(s, block, h, 0, out.view(), true);
    for (std::int64_t i = 0; i < out.view().dim(0); ++i)
      for (std::int64_t c = 0; c < s.dim; ++c) {
        const double d = static_cast<double>(out.view()(i, c)) - static_cast<double>(rows.view()(h, i, c));
        sum += d * d;
      }
  }
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("gear: outliers come back exactly, the rest is coded around the vector's mean", "[unit]") {
  // One value row of one head: 100 and -50 leave, their places get the mean 8 before the row is coded in steps of 1.
  const gear_parts::Settings s{.kv_heads = 1, .dim = 8, .side = Side::value, .bits = 4, .group_size = 8, .sparsity = 0.25, .rank = 0};
  Array rows({1, 1, 8});
  rows.values() = {100, 0, 15, 1, -50, -6, 9, -5};  // sum 64
  CHECK(gear_parts::outliers_each_side(s, 1) == 1);
  const gear_parts::Block block = gear_parts::encode_block(s, rows.view(), true, {});
  float scale = 0, zero = 0;
  num::load(Dtype::f16, block.codes[0].scales(), std::span(&scale, 1));
  num::load(Dtype::f16, block.codes[0].zeros(), std::span(&zero, 1));
  CHECK(scale == num::round_to(Dtype::f16, 21.0F / 15.0F));
  CHECK(zero == -6.0F);
  Array out({1, 8});
  gear_parts::decode_block(s, block, 0, 0, out.view(), true);
  CHECK(out.values()[0] == 100);
  CHECK(out.values()[4] == -50);
  CHECK(out.values()[5] == -6);
}

TEST_CASE("gear: a full rank or a full share of outliers gives the rows back, a low rank lowers the error", "[unit]") {
  const Array rows = normal_rows(2, 64, 16);
  for (const Side side : {Side::key, Side::value}) {
    gear_parts::Settings s{.kv_heads = 2, .dim = 16, .side = side, .bits = 2, .group_size = 16, .sparsity = 0, .rank = 0};
    const double plain = error_of(s, rows);
    s.rank = 4;
    const double low = error_of(s, rows);
    CHECK(low < 0.95 * plain);
    s.rank = 16;
    CHECK(error_of(s, rows) < 1e-3 * plain + 0.02);  // factors are fp16
    s.rank = 0;
    s.sparsity = 1;
    CHECK(error_of(s, rows) < 0.03);  // outliers are fp16
  }
}

TEST_CASE("gear: 2 bits, groups of 64, rank 4 and 2% outliers of 1,024 tokens weigh 2.5 + 0.56 + 0.64 bits a value", "[unit]") {
  const MethodChoice m = parse_choice("gear");
  const CacheShape shape = uniform_shape(1, 8, 8, 128, Dtype::f16);
  const Ledger ledger = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(1024)});
  const auto bits = [&](const char* component, Side side) { return 8.0 * static_cast<double>(ledger.of(component, side).value) / (1024 * 8 * 128); };
#ifndef KVATLAS_POISON_FORMULAS
  for (const Side side : {Side::key, Side::value}) {
    CHECK(bits("codes", side) + bits("scales", side) + bits("zeros", side) == 2.5);
    CHECK(bits("low_rank", side) == 0.5625);
    CHECK(std::abs(bits("outliers", side) - 0.64) < 0.02);  // 10 of 10.24 values a side and vector of 1,024
  }
  CHECK(bits("outliers", Side::key) == 0.625);
#endif
}

TEST_CASE("gear: what comes after the prompt is coded buffer by buffer at its own rank", "[unit]") {
  const MethodChoice m = parse_choice("gear:group_size=8,buffer=8,rank=4,decode_rank=1");
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = 16, .v_dim = 16, .layers = {0}};
  const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f16);
  const Array rows = normal_rows(1, 30, 16);
  store->append(rows.view().slice(1, 0, 19));
  store->settle(true);  // 16 coded, 3 wait
  store->append(rows.view().slice(1, 19, 5));
  store->settle(true);  // 8 more
  std::vector<NamedBuffer> buffers;
  store->buffers("", buffers);
  CHECK(find_buffer(buffers, "block0_left/0").bytes.size() == 16 * 4 * 2);
  CHECK(find_buffer(buffers, "block1_left/0").bytes.size() == 8 * 1 * 2);
  CHECK_THROWS_AS(store->check_crop(Tokens(23)), Unsupported);
}

TEST_CASE("gear: the released count takes outliers of a key channel from the channels of a row", "[unit]") {
  gear_parts::Settings s{.kv_heads = 8, .dim = 128, .side = Side::key, .sparsity = 0.02};
  CHECK(gear_parts::outliers_each_side(s, 64) == 0);
  s.keys_count_channels = true;
  CHECK(gear_parts::outliers_each_side(s, 64) == 10);  // 20 of 64 values: 31%
}

TEST_CASE("gear: buffers that groups do not fill are refused", "[unit]") {
  const auto why = [](const std::string& recipe) {
    const MethodChoice m = parse_choice(recipe);
    return why_not(*m.method, m.row, uniform_shape(1, 2, 1, 64, Dtype::bf16));
  };
  CHECK(why("gear:buffer=96") == "buffer is 96, must be a multiple of group_size (64): a key group is coded whole");
  CHECK(why("gear:group_size=48,buffer=96") == "group_size is 48, must divide head_dim (64)");
}
