// XAttention against recorded outputs of its released torch path; every case is one query chunk, so the rule is the official one.
#include "reference/compose/recipe.hpp"
#include "reference/sparse_prefill/xattention/blocks.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("block masses and masks agree with the released estimation", "[golden]") {
  int checked = 0;
  for (const GoldenCase& golden : golden_cases("xattention")) {
    CAPTURE(golden.name());
    REQUIRE(golden.parameter<std::string>("select_mode") == "inverse");
    const int heads = golden.parameter<int>("heads"), dim = golden.parameter<int>("head_dim"), block = golden.parameter<int>("block_size");
    const int stride = golden.parameter<int>("stride");
    const auto tokens = golden.parameter<std::int64_t>("tokens");
    REQUIRE(tokens <= golden.parameter<std::int64_t>("chunk_size"));
    const NamedTensor q = golden.floats("q"), k = golden.floats("k"), given = golden.floats("threshold");
    const View<const float> qv = view_of(q, {heads, tokens, dim}), kv = view_of(k, {heads, tokens, dim});
    const std::string text = golden.parameter<std::string>("threshold");
    const std::int64_t padded = golden.integers("mask").dims.back(), blocks = ceil_div(tokens, block);
    std::vector<float> masses;
    std::vector<std::int64_t> mask;
    for (int h = 0; h < heads; ++h) {
      // A scalar is a float64 there, a tensor's float32 values are widened.
      const double threshold = given.values.size() > 1 ? static_cast<double>(given.values[static_cast<std::size_t>(h)]) : std::stod(text);
      const auto rows = antidiagonal::block_mass({.stride = stride, .block = block}, qv[h], 0, kv[h]);
      REQUIRE(static_cast<std::int64_t>(rows.size()) == blocks);
      for (std::int64_t i = 0; i < padded; ++i) {
        std::vector<float> row(static_cast<std::size_t>(padded), 0.0F);
        if (i < blocks) std::ranges::copy(rows[static_cast<std::size_t>(i)], row.begin());
        masses.insert(masses.end(), row.begin(), row.end());
        // A block of padding has no mass: nothing is required, what is mandatory stays.
        auto keep = antidiagonal::choose_blocks(std::span(row).first(static_cast<std::size_t>(i + 1)), threshold, antidiagonal::Rule::official);
        keep.resize(static_cast<std::size_t>(padded), 0);
        mask.insert(mask.end(), keep.begin(), keep.end());
      }
    }
    check_bound(golden, "block_mass", masses);
    check_exact(golden, "mask", mask);

    if (given.values.size() == 1) {  // the face of the record takes one threshold
      const MethodChoice choice = parse_choice(cat("xattention:compat=official,stride=", stride, ",block=", block, ",threshold=", text));
      const BlockMask face = choice.method->select_blocks(choice.row, {.q = qv, .k = kv});
      for (int h = 0; h < heads; ++h)
        for (std::int64_t i = 0; i < blocks; ++i)
          for (std::int64_t j = 0; j < blocks; ++j) CHECK(face.at(h, i, j) == (mask[static_cast<std::size_t>((h * padded + i) * padded + j)] != 0));
    }
    ++checked;
  }
  REQUIRE(checked >= 5);
}
