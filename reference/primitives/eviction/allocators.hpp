// How a budget is shared out: over the layers of a model, over the heads of a layer.
#pragma once

#include <array>
#include <functional>

#include "reference/primitives/eviction/rule.hpp"

namespace kvatlas::eviction {

/// A schedule that falls linearly from the first layer to the last one.
enum class Schedule : std::uint8_t {
  exact,   // rounded so that the layers' sum is exactly layers * budget
  floor,   // steps of whole tokens, as released: the sum drifts above the budget
  kvpress  // rounded to nearest; the window counts as budget; uniform where the last layer would get less than the window
};
inline constexpr std::array<std::string_view, 3> kScheduleNames{"exact", "floor", "kvpress"};

struct Pyramid {
  Tokens budget{0};              // mean rows a head, observation window included
  Tokens observation_window{0};
  int beta = 20;                 // the last layer's share is 1 / beta of the mean
  Schedule schedule = Schedule::exact;
};

/// Rows that a head of `place` keeps of a prompt of `rows`, observation window included.
/// source   arXiv 2406.02069, section 3.3; KVCache-Factory pyramidkv_utils.py; kvpress pyramidkv_press.py
std::int64_t pyramid_rows(const Pyramid& p, const Place& place, std::int64_t rows);

/// Candidates that each head keeps when `heads * k` of a layer's candidates stay: the best of all, whoever owns them; but
/// at least the `guaranteed` best of each head. Of equal scores the lower head, then the lower slot stays.
Counts share_best(const std::vector<std::span<const float>>& candidates, std::int64_t k, std::int64_t guaranteed);

/// The released form: each head gets `floor` of k, whole tokens, and the rest by its share of the best heads * k candidates,
/// rounded half to even; the layer's total drifts. With `normalize` a head's scores count times the part of their sum that
/// its k best hold.
/// source   AdaKV adaptive_snapkv/monkeypatch/snapkv_utils.py
Counts share_rounded(const std::vector<std::span<const float>>& candidates, std::int64_t k, double floor, bool normalize);

/// `total` tokens shared over layers as they asked, in whole tokens: shares rounded down; what is above `most` goes once to the
/// layers below it in equal parts, the remainder to the first of them; then what is missing the same way, and what is too much comes
/// from layers above 1. So a share may end above `most`, which the caller cuts.
/// source   CAKE cake/utils.py (adjust_budgets)
Counts share_by_preference(const std::vector<double>& asked, std::int64_t total, std::int64_t most);

}  // namespace kvatlas::eviction
