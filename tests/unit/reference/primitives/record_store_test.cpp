#include "reference/primitives/record_store.hpp"

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;

namespace {

/// Two rows a record: their first channels as bytes, then a byte of check.
RecordStore small_store(Ageing ageing, std::int64_t residual, std::int64_t sinks, int block = 2) {
  RecordLayout l{.block = block, .parts = {{"codes", block, Scope::token}, {"checks", 1, Scope::group}}, .ageing = ageing,
                 .residual = Tokens(residual), .sinks = Tokens(sinks)};
  RecordCodec codec{.encode = [block](const RecordPlace&, View<const float> rows, std::span<std::byte> record) {
                      for (int i = 0; i < block; ++i) record[static_cast<std::size_t>(i)] = static_cast<std::byte>(static_cast<int>(rows(i, 0)) + 100);
                      record[static_cast<std::size_t>(block)] = std::byte{7};
                    },
                    .decode = [block](const RecordPlace&, std::span<const std::byte> record, View<float> rows) {
                      for (int i = 0; i < block; ++i) rows(i, 0) = static_cast<float>(static_cast<int>(record[static_cast<std::size_t>(i)]));
                    }};
  return RecordStore(1, 1, Side::key, Dtype::f32, l, std::move(codec));
}

void append(RecordStore& s, int first, int count) {
  Array rows({1, count, 1});
  for (int i = 0; i < count; ++i) rows.values()[static_cast<std::size_t>(i)] = static_cast<float>(first + i);
  s.append(rows.view());
}

std::vector<float> all(const RecordStore& s) {
  Array out({s.size().value, 1});
  s.read(0, 0, out.view());
  return out.values();
}

}  // namespace

TEST_CASE("records: rows wait until the prompt ends, then leave the window in whole records", "[unit]") {
  RecordStore s = small_store(Ageing::slide, 3, 1);
  append(s, 0, 6);
  s.settle(false);
  CHECK(all(s) == std::vector<float>{0, 1, 2, 3, 4, 5});
  s.settle(true);  // one sink, two coded, three plain
  CHECK(all(s) == std::vector<float>{0, 101, 102, 3, 4, 5});
  append(s, 6, 1);
  s.settle(true);
  CHECK(all(s) == std::vector<float>{0, 101, 102, 3, 4, 5, 6});
  append(s, 7, 1);
  s.settle(true);
  CHECK(all(s) == std::vector<float>{0, 101, 102, 103, 104, 5, 6, 7});
  Array part({3, 1});
  s.read(0, 2, part.view());
  CHECK(part.values() == std::vector<float>{102, 103, 104});
}

TEST_CASE("records: a flush codes all that waits, and what is coded cannot be taken back", "[unit]") {
  RecordStore s = small_store(Ageing::flush, 4, 0);
  append(s, 0, 7);
  s.settle(true);
  CHECK(all(s) == std::vector<float>{100, 101, 102, 103, 4, 5, 6});
  s.crop(Tokens(5));
  CHECK(all(s) == std::vector<float>{100, 101, 102, 103, 4});
  CHECK_THROWS_WITH(s.crop(Tokens(3)), "crop to 3 tokens would take back rows that are coded: 4 are, at that length 0 were");
}

TEST_CASE("records: rows that are coded at once can leave at both ends", "[unit]") {
  RecordStore s = small_store(Ageing::at_once, 0, 0, 1);
  append(s, 0, 5);
  s.drop_front(Tokens(2));
  s.crop(Tokens(2));
  CHECK(all(s) == std::vector<float>{102, 103});
}

TEST_CASE("records: saved parts come back; parts that do not match are refused and change nothing", "[unit]") {
  RecordStore s = small_store(Ageing::slide, 3, 1), fresh = small_store(Ageing::slide, 3, 1);
  append(s, 0, 8);
  s.settle(true);
  std::vector<NamedBuffer> saved;
  s.buffers("k_", saved);
  fresh.load("k_", saved);
  CHECK(all(fresh) == all(s));
  const auto refused = [&](const char* name, std::size_t bytes, const char* sentence) {
    std::vector<NamedBuffer> bad = saved, after;
    for (NamedBuffer& b : bad)
      if (b.name == name) b.bytes.resize(bytes);
    CHECK_THROWS_WITH(fresh.load("k_", bad), sentence);
    fresh.buffers("k_", after);
    CHECK(test::digest(after) == test::digest(saved));
  };
  refused("k_codes/head0", 3, "buffer k_codes/head0 has 3 bytes, must be whole records of 2 bytes, as many in every part and head");
  refused("k_checks/head0", 1, "buffer k_checks/head0 has 1 bytes, must be whole records of 1 bytes, as many in every part and head");
  refused("k_sinks/head0", 0, "buffer k_sinks/head0 holds 0 rows, must hold 1 where rows are coded");
  refused("k_sinks/head0", 8, "buffer k_sinks/head0 holds 2 rows, must hold at most 1");
}

TEST_CASE("records: the ledger counts records, what waits and sinks, and the plain prompt before", "[unit]") {
  const CacheShape shape = uniform_shape(2, 4, 2, 8, Dtype::bf16);
  const RecordLayout l{.block = 4, .parts = {{"codes", 10, Scope::token}}, .state = {{"tables", 5, Scope::layer}}, .ageing = Ageing::flush,
                       .residual = Tokens(8), .sinks = Tokens(3)};
  const Ledger ledger = record_ledger(shape, {.prompt = Tokens(20), .sequences = 3}, [&](const LayerClass&, Side) { return l; });
  const std::int64_t runs = 2 * 2 * 3;
  CHECK(ledger.of("codes", Side::key).value == 16 / 4 * 10 * runs);
  CHECK(ledger.of("tables", Side::value).value == 5 * 2);
  CHECK(ledger.of("sinks", Side::key).value == 3 * 16 * runs);
  CHECK(ledger.of("residual", Side::key).value == 1 * 16 * runs);
  CHECK(ledger.prefill().value == 2 * (20 * 16 * runs + 10));
}

#ifndef KVATLAS_POISON_FORMULAS
TEST_CASE("records: state that a sequence takes from its first call counts once a sequence, given state once a layer", "[unit]") {
  const CacheShape shape = uniform_shape(3, 2, 2, 64, Dtype::bf16);
  const auto bytes = [&](const char* recipe, const char* component, int sequences) {
    const MethodChoice m = parse_choice(recipe);
    return formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(10), .sequences = sequences}).of(component, Side::key).value;
  };
  CHECK(bytes("vidkv", "channels", 1) == 3 * 64 / 8);
  CHECK(bytes("vidkv", "channels", 5) == 5 * 3 * 64 / 8);
  CHECK(bytes("olive", "scales", 5) == 5 * 3 * 2 * 4);
  CHECK(bytes("nvfp4_kv", "global_scale", 5) == 3 * 4);
  CHECK(bytes("nvfp4_kv:calibrate=absmax_448", "global_scale", 5) == 5 * 3 * 4);
  CHECK(bytes("fp8_kv:granularity=head", "scales", 5) == 3 * 2 * 4);
  CHECK(bytes("fp8_kv:granularity=head,calibrate=true", "scales", 5) == 5 * 3 * 2 * 4);
}
#endif
