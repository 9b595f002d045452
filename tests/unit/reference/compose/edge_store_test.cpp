#include "reference/compose/edge_store.hpp"

#include "core/errors.hpp"
#include "reference/primitives/side_cache.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// 2 sinks, 3 recent tokens around plain rows of one head with two channels; `tokens` rows are in.
std::unique_ptr<EdgeStore> store_of(std::int64_t tokens) {
  auto store = std::make_unique<EdgeStore>(plain_store(1, 2, Side::key, Dtype::f32), 1, 2, Side::key, Dtype::f32, Tokens(2), Tokens(3));
  Array rows({1, tokens, 2});
  for (std::size_t i = 0; i < rows.values().size(); ++i) rows.values()[i] = static_cast<float>(i);
  if (tokens > 0) store->append(rows.view());
  store->settle(true);
  return store;
}

std::vector<NamedBuffer> saved_of(const EdgeStore& store) {
  std::vector<NamedBuffer> saved;
  store.buffers("k_", saved);
  return saved;
}

}  // namespace

TEST_CASE("edge rows that cannot be are refused, and a refused load changes nothing", "[unit]") {
  const auto store = store_of(4);
  const std::uint64_t before = digest(saved_of(*store));
  const auto full = saved_of(*store_of(9));
  const auto refused = [&](const char* name, std::size_t rows, const char* sentence) {
    auto saved = full;
    for (NamedBuffer& b : saved)
      if (b.name == name) b.bytes.resize(rows * 8);
    CHECK_THROWS_WITH(store->load("k_", saved), sentence);
    CHECK(digest(saved_of(*store)) == before);
  };
  refused("k_sink_rows/head0", 3, "buffers k_sink_rows hold 3 rows, must hold at most 2");
  refused("k_recent_rows/head0", 4, "buffers k_recent_rows hold 4 rows, must hold at most 3");
  refused("k_sink_rows/head0", 1, "buffers k_recent_rows hold 3 rows, must hold at most 0");
  auto no_recent = full;
  for (NamedBuffer& b : no_recent) {
    if (b.name == "k_sink_rows/head0") b.bytes.resize(8);
    if (b.name == "k_recent_rows/head0") b.bytes.clear();
  }
  CHECK_THROWS_WITH(store->load("k_", no_recent), "buffers k_ hold 4 coded rows behind 1 sinks, must hold none before there are 2 sinks");
  CHECK(digest(saved_of(*store)) == before);
  store->load("k_", full);
  CHECK(digest(saved_of(*store)) == digest(full));
  store->load("k_", saved_of(*store_of(1)));
  CHECK(store->size() == 1_tok);
}
