// SnapKV's choice with eyes ahead: the queries of tokens that a draft model expects score together with the prompt's last ones.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "reference/primitives/draft_model.hpp"
#include "reference/primitives/eviction/params.hpp"

namespace kvatlas::eviction {

enum class JointReduce : std::uint8_t { max, mean };
inline constexpr std::array<std::string_view, 2> kJointNames{"max", "mean"};

struct LookaheadParams {
  Tokens budget = 1024_tok;
  Tokens observation_window = 32_tok;
  Tokens lookahead = 64_tok;
  int kernel = 7;
  Pooling pooling = Pooling::max;
  JointReduce reduce = JointReduce::max;
  Draft draft = Draft::llama_3_2_1b;
  static constexpr auto lookahead_fields() {
    return std::tuple{
        field(&LookaheadParams::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept before its last one, observation window included"),
        field(&LookaheadParams::observation_window, "observation_window", "token", 1, 4096, "prompt queries before the last one that score; their tokens stay"),
        field(&LookaheadParams::lookahead, "lookahead", "token", 0, 8192, "newest tokens of what is handed in as the prompt that the draft wrote: they score, then leave"),
        field(&LookaheadParams::kernel, "kernel", "token", 1, 255, "tokens of one pooling window, odd"),
        choice(&LookaheadParams::pooling, "pooling", kPoolingNames, "how a token's score gathers its neighbours'"),
        choice(&LookaheadParams::reduce, "reduce", kJointNames, "how queries and query heads of a group together become one score"),
        choice(&LookaheadParams::draft, "draft", kDraftNames, "the draft model whose work a plan counts")};
  }
};

/// Of a prompt of S tokens and its draft, min(S, budget + 1) of the prompt stay: its last token, observation_window before it, and the
/// best of the rest by the attention of observation_window + 1 + lookahead queries.
Rule lookahead_rule(const char* name, const LookaheadParams& p);

}  // namespace kvatlas::eviction
