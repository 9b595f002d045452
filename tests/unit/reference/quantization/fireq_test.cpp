#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

struct Stored {
  std::vector<int> codes, scales;
  std::vector<float> back;
};

Stored stored(const std::string& recipe, const std::vector<float>& x, Side side = Side::value) {
  const MethodChoice m = parse_choice(recipe);
  const auto dim = static_cast<std::int64_t>(x.size());
  const CacheShape shape = uniform_shape(1, 1, 1, static_cast<int>(dim), Dtype::f32, {.rotary_dim = static_cast<int>(dim)});
  const auto store = m.method->open_side(m.row, shape.classes.front(), 0, side, Dtype::f32);
  store->append({x.data(), {1, 1, dim}});
  store->settle(true);
  std::vector<NamedBuffer> buffers;
  store->buffers("", buffers);
  Stored s;
  for (const std::byte b : find_buffer(buffers, "codes/head0").bytes) s.codes.push_back(std::to_integer<int>(b));
  for (const std::byte b : find_buffer(buffers, "scales/head0").bytes) s.scales.push_back(std::to_integer<int>(b));
  Array out({1, dim});
  store->read(0, 0, out.view());
  s.back = out.values();
  return s;
}

const std::vector<float> kRow{7.4375F, 1, -3.5F, 0.5F, 0, 0, 0, 0};

}  // namespace

TEST_CASE("fireq: codes come from the scale as it is stored, E4M3 of a seventh of the largest value", "[unit]") {
  const Stored s = stored("fireq:group_size=8", kRow);
  CHECK(s.scales == std::vector<int>{0x38});                   // 1.0625 ties to the even 1
  CHECK(s.codes == std::vector<int>{0x17, 0x0C, 0x00, 0x00});  // 7, 1, -4, 0
  CHECK(s.back == std::vector<float>{7, 1, -4, 0, 0, 0, 0, 0});
}

TEST_CASE("fireq: the released store divides by the exact scale and truncates", "[unit]") {
  CHECK(stored("fireq:group_size=8,store=released", kRow).codes == std::vector<int>{0x07, 0x0D, 0x00, 0x00});  // 7, 0, -3, 0
}

TEST_CASE("fireq: a group too small for its scale's format decodes to zeros", "[unit]") {
  const Stored s = stored("fireq:group_size=8", std::vector<float>(8, 0x1p-12F));
  CHECK(s.scales == std::vector<int>{0});
  CHECK(s.back == std::vector<float>(8, 0.0F));
}

TEST_CASE("fireq: keys are coded after their channels are scaled, pairs alike, outliers and their partners one by one", "[unit]") {
  // Half-split pairs (0, 4), (1, 5), ...: pair 0 has length 5, channel 2 and its partner 6 are the outliers.
  const std::vector<float> x{3, 0.5F, 80, 0.25F, 4, 0, 2, 0};
  const MethodChoice m = parse_choice("fireq:group_size=8,top_channels=1");
  const CacheShape shape = uniform_shape(1, 1, 1, 8, Dtype::f32, {.rotary_dim = 8});
  const auto store = m.method->open_side(m.row, shape.classes.front(), 0, Side::key, Dtype::f32);
  store->append({x.data(), {1, 1, 8}});
  store->settle(true);
  std::vector<NamedBuffer> buffers;
  store->buffers("", buffers);
  std::vector<float> factors(8);
  num::load(Dtype::f32, find_buffer(buffers, "factors").bytes, factors);
  CHECK(factors == std::vector<float>{0.2F, 2, 1.0F / 80, 4, 0.2F, 2, 0.5F, 4});
}

TEST_CASE("fireq: 4.0625 bits a value with an E4M3 scale, 4.125 with bf16, and 4 bytes a key channel of a layer", "[unit]") {
#ifndef KVATLAS_POISON_FORMULAS
  const CacheShape shape = uniform_shape(1, 2, 2, 128, Dtype::bf16);
  for (const auto& [recipe, bits] : {std::pair{"fireq", 4.0625}, std::pair{"fireq:scale=bf16", 4.125}}) {
    const MethodChoice m = parse_choice(recipe);
    const Ledger ledger = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(1000)});
    CHECK(8.0 * static_cast<double>(ledger.total(Side::value).value) == bits * 1000 * 256);
    CHECK(ledger.of("factors", Side::key).value == 4 * 256);
  }
#endif
}
