// Parameters that many eviction methods share, with the names that users write.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "core/errors.hpp"
#include "reference/params.hpp"
#include "reference/primitives/eviction/rule.hpp"
#include "reference/primitives/window_scores.hpp"

namespace kvatlas::eviction {

inline constexpr std::array<std::string_view, 2> kTriggerNames{"prompt", "every_step"};  // the first two of Trigger
inline constexpr std::array<std::string_view, 2> kPoolingNames{"avg", "max"};
inline constexpr std::array<std::string_view, 3> kGroupNames{"mean", "max", "sum"};
inline constexpr std::array<std::string_view, 2> kWindowNames{"sum", "mean"};

/// Scores that a wrapper can build on.
enum class BaseScore : std::uint8_t { snapkv, keydiff, knorm, tova };
inline constexpr std::array<std::string_view, 4> kBaseNames{"snapkv", "keydiff", "knorm", "tova"};

/// Settings of a score by the attention of the prompt's last queries; a page's Params derives from it and may set other
/// defaults in its constructor.
struct WindowParams {
  Tokens observation_window = 32_tok;
  int kernel = 7;
  Pooling pooling = Pooling::max;
  GroupReduce group_reduce = GroupReduce::mean;
  WindowReduce window_reduce = WindowReduce::sum;
  bool pool_first = false;
  Granularity granularity = Granularity::kv_head;
  static constexpr auto window_fields() {
    return std::tuple{
        field(&WindowParams::observation_window, "observation_window", "token", 1, 4096, "last prompt queries that score; always kept"),
        field(&WindowParams::kernel, "kernel", "token", 1, 255, "tokens of one pooling window, odd"),
        choice(&WindowParams::pooling, "pooling", kPoolingNames, "how a token's score gathers its neighbours'"),
        choice(&WindowParams::group_reduce, "group_reduce", kGroupNames, "how the query heads of a group become one score"),
        choice(&WindowParams::window_reduce, "window_reduce", kWindowNames, "how the queries of the window become one score"),
        flag(&WindowParams::pool_first, "pool_first", "pool each query head before the group is reduced"),
        choice(&WindowParams::granularity, "granularity", kGranularityNames, "heads that choose, and own rows, by themselves")};
  }
  ScoreReduce reduce() const { return {window_reduce, group_reduce, pooling, kernel, pool_first}; }
  /// The sentence when kernel or budget do not fit the window.
  std::optional<std::string> refusal(Tokens budget) const {
    if (kernel % 2 == 0) return cat("kernel is ", kernel, ", must be odd");
    if (budget < observation_window)
      return cat("budget is ", budget.value, ", must be at least observation_window (", observation_window.value, ")");
    return std::nullopt;
  }
};

}  // namespace kvatlas::eviction
