#include <cmath>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

Array normal_rows(std::int64_t n, std::int64_t dim) {
  Array rows({1, n, dim});
  Random random(8);
  for (float& f : rows.values()) f = random.normal();
  return rows;
}

std::unique_ptr<SideStore> saq_store(const std::string& recipe, Side side, int dim = 32) {
  const MethodChoice m = parse_choice(recipe);
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = dim, .v_dim = dim, .layers = {0}};
  return m.method->open_side(m.row, c, 0, side, Dtype::f16);
}

std::size_t code_bytes(const SideStore& store, int stage) {
  std::vector<NamedBuffer> buffers;
  store.buffers("", buffers);
  return find_buffer(buffers, cat("stage", stage, "_codes/head0")).bytes.size();
}

}  // namespace

TEST_CASE("saq: groups move down the staircase when a stage holds one group too many", "[unit]") {
  const auto store = saq_store("saq:group_size=8,plain=16,first=16,second=8", Side::key);
  const Array rows = normal_rows(80, 32);
  for (std::int64_t t = 0; t < 80; ++t) {
    store->append(rows.view().slice(1, t, 1));
    store->settle(true);
  }
  // 80 tokens: 16 plain, 16 at 8 bits, 8 at 4 bits, 40 at 2 bits.
  CHECK(code_bytes(*store, 0) == 16 * 32);
  CHECK(code_bytes(*store, 1) == 8 * 32 / 2);
  CHECK(code_bytes(*store, 2) == 40 * 32 / 4);
  CHECK(store->size() == Tokens(80));
}

TEST_CASE("saq: one call or one token a step end in the same bytes", "[unit]") {
  const Array rows = normal_rows(75, 32);
  for (const Side side : {Side::key, Side::value}) {
    const auto once = saq_store("saq:group_size=8,plain=16,first=16,second=8", side), steps = saq_store("saq:group_size=8,plain=16,first=16,second=8", side);
    once->append(rows.view());
    once->settle(true);
    for (std::int64_t t = 0; t < 75; ++t) {
      steps->append(rows.view().slice(1, t, 1));
      steps->settle(true);
    }
    std::vector<NamedBuffer> a, b;
    once->buffers("", a);
    steps->buffers("", b);
    CHECK(digest(a) == digest(b));
  }
}

TEST_CASE("saq: the extremes of a group survive every move", "[unit]") {
  const auto store = saq_store("saq:group_size=8,plain=0,first=0,second=0", Side::value, 8);
  Array row({1, 8, 8});
  for (std::int64_t t = 0; t < 8; ++t)
    for (std::int64_t c = 0; c < 8; ++c) row.view()(0, t, c) = static_cast<float>(c) * 0.25F;
  store->append(row.view());
  store->settle(true);
  Array out({8, 8});
  store->read(0, 0, out.view());
  CHECK(out.view()(0, 0) == 0.0F);
  CHECK(std::fabs(out.view()(0, 7) - 1.75F) < 2e-3F);
}

TEST_CASE("saq: 4.08 bits a value on average at 8,192 tokens", "[unit]") {
#ifndef KVATLAS_POISON_FORMULAS
  const MethodChoice m = parse_choice("saq");
  const CacheShape shape = uniform_shape(1, 1, 1, 128, Dtype::f16);
  const Ledger ledger = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(8192)});
  const double bits = 8.0 * static_cast<double>(ledger.total().value) / (2 * 128 * 8192);
  CHECK(std::fabs(bits - (128 * 16 + 512 * 9 + 2048 * 5 + 5504 * 3) / 8192.0) < 1e-12);
  CHECK(std::fabs(bits - 4.08) < 0.005);
#endif
}

TEST_CASE("saq: stages that are no whole groups or grow with age are refused", "[unit]") {
  const auto why = [](const std::string& recipe) {
    const MethodChoice m = parse_choice(recipe);
    return why_not(*m.method, m.row, uniform_shape(1, 2, 1, 64, Dtype::bf16));
  };
  CHECK(why("saq:first=100") == "first is 100, must be a multiple of group_size (32)");
  CHECK(why("saq:first_bits=2") == "widths are 2, 4 and 2, must not grow with age");
}
