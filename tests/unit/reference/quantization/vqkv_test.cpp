#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// Two stages of four vectors over two channels: corners, then small corrections.
TensorMap small_books() {
  const NamedTensor k{.dims = {2, 4, 2}, .values = {4, 4, 4, -4, -4, 4, -4, -4, 0, 0, 1, 0, 0, 1, 1, 1}};
  const NamedTensor v{.dims = {1, 2, 2}, .values = {1, 2, 3, 4}};
  return {{"layer0.k_codebooks", k}, {"layer0.v_codebooks", v}};
}

std::string run_error(const TensorMap* trained) {
  const MethodChoice m = parse_choice("vqkv:k_stages=2,k_entries=4,v_stages=1,v_entries=2,sinks=1,local_window=0,quant_block=1");
  try {
    (void)m.method->open(m.row, uniform_shape(1, 1, 1, 2, Dtype::f32), {.trained = trained});
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("vqkv: by hand, two stages of keys, one of values, the first token plain", "[unit]") {
  const TensorMap books = small_books();
  const MethodChoice m = parse_choice("vqkv:k_stages=2,k_entries=4,v_stages=1,v_entries=2,sinks=1,local_window=0,quant_block=1");
  const auto cache = m.method->open(m.row, uniform_shape(1, 1, 1, 2, Dtype::f32), {.trained = &books});
  Array q({1, 2, 2}), k({1, 2, 2}), v({1, 2, 2}), out({1, 2, 2});
  k.values() = {9, 9, 5.2F, -3.9F};  // (5.2, -3.9): nearest (4, -4), rest (1.2, 0.1): nearest (1, 0)
  v.values() = {7, 7, 2.9F, 3.0F};   // nearest (3, 4)
  const std::vector<std::int64_t> positions{0, 1};
  cache->forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {2}}}, out.view());
  cache->end_prefill();
  Array one({1, 1, 2}), after({1, 1, 2});
  const std::vector<std::int64_t> next{2};
  cache->forward(0, {.q = one.view(), .k = one.view(), .v = one.view(), .positions = {next.data(), {1}}}, after.view());
  const std::vector<NamedBuffer> saved = cache->buffers();
  const auto& indices = find_buffer(saved, "layer0/k_indices/head0").bytes;
  REQUIRE(indices.size() == 2);
  CHECK(static_cast<int>(indices[0]) == (1 | 1 << 2));
  CHECK(static_cast<int>(find_buffer(saved, "layer0/v_indices/head0").bytes[0]) == 1);
  CHECK(find_buffer(saved, "layer0/k_sinks/head0").bytes.size() == 8);
  // Equal scores: the mean of the plain (7, 7), the coded (3, 4) and the new (0, 0).
  CHECK(after.values()[0] == Approx(10.0 / 3));
  CHECK(after.values()[1] == Approx(11.0 / 3));
}

TEST_CASE("vqkv: the published ratios follow from stages and sizes", "[unit]") {
  const auto bits_of = [](const char* recipe) {
    const MethodChoice m = parse_choice(recipe);
    const CacheShape shape = uniform_shape(1, 4, 2, 128, Dtype::bf16);
    const auto at = [&](std::int64_t n) {
      const Ledger l = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(n)});
      return l.of("indices", Side::key).value + l.of("indices", Side::value).value;
    };
    return static_cast<double>(at(4 + 2048) - at(4 + 1024)) * 8 / (1024 * 2);
  };
  CHECK(bits_of("vqkv") == 704);
  CHECK(1 - bits_of("vqkv") / 4096 == Approx(0.828125));
  CHECK(1 - bits_of("vqkv:v_stages=10,v_entries=65536") / 4096 == Approx(0.8242).epsilon(1e-4));
  const MethodChoice m = parse_choice("vqkv");
  CHECK(formula_ledger(*m.method, m.row, uniform_shape(1, 4, 2, 128), {}).total() == Bytes(16 << 20));
}

TEST_CASE("vqkv: refuses to open without its file, and files that do not fit", "[unit]") {
  CHECK(run_error(nullptr).starts_with("vqkv needs a trained file: tensors layer<l>.k_codebooks"));
  TensorMap books = small_books();
  CHECK(run_error(&books) == "");
  books["layer0.k_codebooks"].dims = {4, 2, 2};
  CHECK(run_error(&books) == "tensor \"layer0.k_codebooks\" is [4, 2, 2], must be [2, 4, 2]");
  books.erase("layer0.v_codebooks");
  books["layer0.k_codebooks"].dims = {2, 4, 2};
  CHECK(run_error(&books) == "trained file has no tensor \"layer0.v_codebooks\"");
  CHECK(refusal("vqkv:k_entries=1000", 64) == "k_entries is 1000, must be a power of two: an index has whole bits");
}
