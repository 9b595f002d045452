// Bits per value at head_dim 128: live bytes against the closed form and against published figures to their digits.
#include <cmath>
#include <set>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

struct Figure {
  const char* recipe;
  int kv_heads;
  std::int64_t tokens;
  double key, value;    // published, or the sum of its published parts
  double digit;         // half of the last printed digit
  const char* remark;   // what our count has and the figure has not, or the other way round
};

// Plain rows (residual windows, sinks) count neither as bytes nor as values; what is stored once a layer or head is left out.
const std::set<std::string_view> kPlain{"residual", "sink_rows"};
const std::set<std::string_view> kOnce{"thresholds", "codebook", "factors", "order", "channels", "tensor_scale"};

const Figure kFigures[] = {
    {"fp8_kv", 2, 256, 8, 8, 0.03, "one float32 scale a layer and side"},
    {"int8_pth", 2, 256, 8.25, 8.25, 0, ""},
    {"kivi:bits=4", 2, 256, 5, 5, 0, ""},
    {"kivi", 2, 256, 3, 3, 0, ""},
    {"kivi:group_size=64", 2, 256, 2.5, 2.5, 0, ""},
    {"kivi:bits=4,group_size=64", 2, 256, 4.5, 4.5, 0, ""},
    {"kivi:group_size=128", 2, 256, 2.25, 2.25, 0, ""},
    {"kivi:bits=4,group_size=128", 2, 256, 4.25, 4.25, 0, ""},
    {"kvquant", 32, 64, 4.33, 4.34, 0.005, ""},
    {"kvquant:bits=3", 32, 64, 3.33, 3.34, 0.005, ""},
    {"kvquant:bits=2", 32, 64, 2.33, 2.34, 0.005, ""},
    {"kvquant:storage=released", 32, 64, 4.66, 4.66 + 0.125, 0.005, "values: the expanded table of a token, 64 bytes"},
    {"gear", 2, 1024, 2.5 + 0.56 + 0.625, 2.5 + 0.56 + 0.5, 0.005, "outliers of a side are whole: 10 of 10.24 of a key channel, 2 of 2.56 of a value row"},
    {"rotatekv", 4, 256, 2.25, 2.25, 0, ""},
    {"fireq", 2, 256, 4.06, 4.06, 0.005, ""},
    {"arcquant", 2, 256, 5.06, 4.5, 0.005, ""},
    {"saq", 1, 8192, (512 * 9 + 2048 * 5 + 5504 * 3) / 8064.0, (512 * 9 + 2048 * 5 + 5504 * 3) / 8064.0, 1e-9, ""},
};

}  // namespace

TEST_CASE("bits per value at defaults and head_dim 128 are the published ones to their digits", "[unit]") {
  for (const Figure& f : kFigures) {
    CAPTURE(f.recipe, f.remark);
    const MethodChoice m = parse_choice(f.recipe);
    const CacheShape shape = uniform_shape(1, f.kv_heads, f.kv_heads, 128, Dtype::f16);
    Ledger all;
    for (const Side side : {Side::key, Side::value}) {
      const auto store = m.method->open_side(m.row, shape.classes.front(), 0, side, Dtype::f16);
      Array rows({f.kv_heads, f.tokens, 128});
      Random random(1);
      for (float& x : rows.values()) x = random.normal();
      store->append(rows.view());
      store->settle(true);
      std::vector<NamedBuffer> buffers;
      store->buffers("", buffers);
      const Ledger counted = count_ledger(buffers);
      all.add(counted);
      std::int64_t bytes = 0, plain = 0;
      for (const LedgerEntry& e : counted.entries()) {
        if (kPlain.contains(e.component)) plain += e.bytes.value;
        else if (!kOnce.contains(e.component)) bytes += e.bytes.value;
      }
      const double bits = 8.0 * static_cast<double>(bytes) / static_cast<double>(f.tokens * f.kv_heads * 128 - plain / 2);
      CAPTURE(name_of(side), bits);
      CHECK(std::fabs(bits - (side == Side::key ? f.key : f.value)) <= f.digit);
    }
#ifndef KVATLAS_POISON_FORMULAS
    const Ledger formula = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(f.tokens)});
    for (const LedgerEntry& e : all.entries()) {
      CAPTURE(e.component, name_of(e.side));
      CHECK(e.bytes.value == formula.of(e.component, e.side).value);
    }
    CHECK(all.total().value == formula.total().value);
#endif
  }
}
