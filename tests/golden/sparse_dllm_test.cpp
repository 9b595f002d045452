// Sparse-dLLM against the official code: importance of the tokens around a block, and which of them stay.
#include <algorithm>

#include "reference/eviction/sparse_dllm/importance.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("Sparse-dLLM keeps the tokens around a block that the official code keeps", "[golden]") {
  for (const GoldenCase& g : golden_cases("sparse_dllm")) {
    CAPTURE(g.name());
    const auto whole = [&](const char* name) { return g.parameter<std::int64_t>(name); };
    const std::int64_t tokens = whole("tokens"), q_heads = whole("q_heads"), kv_heads = whole("kv_heads"), dim = whole("head_dim");
    const methods::sparse_dllm_parts::Block block{.first = whole("block_start"), .size = whole("block")};
    const int kernel = g.parameters().at("kernel_size").is_null() ? 1 : g.parameter<int>("kernel_size");
    const NamedTensor q_block = g.floats("q_block"), k = g.floats("k");
    const auto queries = view_of(q_block, {q_heads, block.size, dim});
    Array q({q_heads, tokens, dim});
    for (std::int64_t h = 0; h < q_heads; ++h)
      for (std::int64_t t = 0; t < block.size; ++t) std::ranges::copy(queries.row(h, t), q.view().row(h, block.first + t).begin());
    const Traced run(q.view(), view_of(k, {kv_heads, tokens, dim}));
    TokenRows rows(static_cast<int>(kv_heads), static_cast<int>(dim), static_cast<int>(dim), Dtype::f32);
    rows.append(run.k(), run.k());
    check_bound(g, "importance", methods::sparse_dllm_parts::importance(run.shape().classes.front(), queries, rows, block, kernel));
    const auto cache = run.open(cat("sparse_dllm:keep_fraction=", g.parameter<double>("keep_ratio"), ",block=", block.size, ",behind=",
                                    tokens - block.first - block.size, ",kernel=", kernel));
    run.run(*cache, 0, tokens);
    cache->end_prefill();
    if (g.selection_margin().value_or(1.0) > 0) check_exact(g, "kept_sorted", tokens_held(*cache));
  }
}
