// Mustafar against the released code: bitmaps, offsets and packed values, and what comes back of pruned rows.
#include <cstring>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// Appends the words of a buffer as the released arrays hold them.
template <class Word>
void add_words(const NamedBuffer& b, std::vector<std::int64_t>& to) {
  for (std::size_t i = 0; i < b.bytes.size() / sizeof(Word); ++i) {
    Word w{};
    std::memcpy(&w, b.bytes.data() + i * sizeof(Word), sizeof(Word));
    to.push_back(static_cast<std::int64_t>(w));
  }
}

void check_mustafar_side(const GoldenCase& golden, Side side) {
  const std::string name = side == Side::key ? "k" : "v";
  const int heads = golden.parameter<int>("kv_heads"), tokens = golden.parameter<int>("tokens"), dim = golden.parameter<int>("head_dim");
  const MethodChoice m = parse_choice(cat("mustafar:k_sparsity=", golden.parameter<double>("sparsity"), ",v_sparsity=",
                                          golden.parameter<double>("sparsity"), ",residual_window=0,flush=64"));
  const CacheShape shape = uniform_shape(1, heads, heads, dim, Dtype::f16);
  const auto store = m.method->open_side(m.row, shape.classes.front(), 0, side, Dtype::f16);
  const NamedTensor rows = golden.floats(name);
  store->append(view_of(rows, {heads, tokens, dim}));
  store->settle(true);
  std::vector<NamedBuffer> buffers;
  store->buffers("", buffers);
  std::vector<std::int64_t> maps, offsets, counts;
  std::vector<std::vector<float>> values(static_cast<std::size_t>(heads));
  std::size_t longest = 0;
  for (int h = 0; h < heads; ++h) {
    add_words<std::int64_t>(find_buffer(buffers, cat("bitmaps/head", h)), maps);
    add_words<std::int32_t>(find_buffer(buffers, cat("offsets/head", h)), offsets);
    const auto& bytes = find_buffer(buffers, cat("values/head", h)).bytes;
    auto& of_head = values[static_cast<std::size_t>(h)];
    of_head.resize(bytes.size() / 2);
    num::load(Dtype::f16, bytes, of_head);
    counts.push_back(static_cast<std::int64_t>(of_head.size()));
    longest = std::max(longest, of_head.size());
  }
  std::vector<float> joined;  // the released array pads every head to the longest one
  for (auto& of_head : values) {
    of_head.resize(longest, 0.0F);
    joined.insert(joined.end(), of_head.begin(), of_head.end());
  }
  check_exact(golden, name + "_bitmap", maps);
  check_exact(golden, name + "_offsets", offsets);
  check_exact(golden, name + "_nonzeros_count", counts);
  check_exact(golden, name + "_nonzeros", joined);
  if (!golden.has(name + "_pruned")) return;
  std::vector<float> pruned, theirs = golden.floats(name + "_pruned").values;
  for (int h = 0; h < heads; ++h) {
    Array out({tokens, dim});
    store->read(h, 0, out.view());
    pruned.insert(pruned.end(), out.values().begin(), out.values().end());
  }
  REQUIRE(pruned == theirs);  // a zero's sign is not stored; == does not see it
}

}  // namespace

TEST_CASE("Mustafar packs the bitmaps, offsets and values of the released code", "[golden]") {
  int compared = 0;
  for (const GoldenCase& golden : golden_cases("mustafar")) {
    if (!golden.has("k_bitmap") || golden.has("lengths")) continue;  // the whole folder has flows and output-aware scores, too
    CAPTURE(golden.name());
    ++compared;
    check_mustafar_side(golden, Side::key);
    check_mustafar_side(golden, Side::value);
  }
  REQUIRE(compared >= 3);
}
