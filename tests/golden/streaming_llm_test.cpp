// StreamingLLM against kvpress, KVCache-Factory and the official cache class.
#include "core/errors.hpp"
#include "reference/primitives/selection.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// Tokens kept of a prompt of `tokens` tokens, for each of `heads` kv heads.
std::vector<std::int64_t> kept_of_prompt(std::int64_t tokens, int heads, std::int64_t sinks, std::int64_t recent, const char* positions) {
  const Array zeros({heads, tokens, 8});
  const Traced run(zeros.view(), zeros.view());
  const auto cache = run.open(cat("streaming_llm:sinks=", sinks, ",recent_window=", recent, ",positions=", positions));
  run.run(*cache, 0, tokens);
  cache->end_prefill();
  return tokens_held(*cache);
}

}  // namespace

TEST_CASE("StreamingLLM keeps the tokens that the released codes keep", "[golden]") {
  for (const GoldenCase& golden : golden_cases("streaming_llm")) {
    CAPTURE(golden.name());
    const auto tokens = golden.parameter<std::int64_t>("tokens");
    if (golden.parameters().contains("n_sink")) {
      const auto sinks = golden.parameter<std::int64_t>("n_sink"), kept = golden.parameter<std::int64_t>("n_kept");
      check_set(golden, "kept", kept_of_prompt(tokens, golden.parameter<int>("kv_heads"), sinks, kept - sinks, "true"));
    } else if (golden.parameters().contains("max_capacity_prompt")) {
      const auto window = golden.parameter<std::int64_t>("window_size"), budget = golden.parameter<std::int64_t>("max_capacity_prompt");
      const int heads = golden.parameter<std::string>("granularity").starts_with("query") ? golden.parameter<int>("q_heads")
                                                                                           : golden.parameter<int>("kv_heads");
      check_set(golden, "kept", kept_of_prompt(tokens, heads, budget - window, window, "true"));
    } else {
      // The official cache makes room for coming tokens, which shortens its window before they are stored.
      const auto sinks = golden.parameter<std::int64_t>("start_size"), recent = golden.parameter<std::int64_t>("recent_size"),
                 coming = golden.parameter<std::int64_t>("num_coming");
      const int heads = golden.parameter<int>("heads");
      const bool fits = tokens + coming <= sinks + recent;
      const std::int64_t window = fits ? tokens : std::max<std::int64_t>(0, recent - coming);
      check_set(golden, "kept", kept_of_prompt(tokens, heads, sinks, window, "slot"));
    }
  }
}
