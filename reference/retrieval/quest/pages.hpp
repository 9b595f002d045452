// Quest's pages: channel-wise bounds of a page's keys, the score that they give a query, and the choice of pages.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/view.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas::quest {

/// Which of the two released paths decides about the last, open page.
enum class LastPage : std::uint8_t {
  system,  // never scored, always attended; the best budget/page - 1 of the others beside it
  python,  // scored like the others; at least three pages
};
/// Whose scores choose: every query head for itself, or the mean or maximum over the heads of a kv head.
enum class Select : std::uint8_t { per_q_head, mean, max };

/// Channel-wise maximum and minimum of rows [first, first + count) of k [rows, dim]; later rows win ties of signed zeros.
struct Bounds {
  std::vector<float> max, min;
};
Bounds bounds_of(View<const float> k, std::span<const std::int64_t> rows);

/// Upper bound of q.k over a page: u = sum of max(q_i M_i, q_i m_i), computed as qk_dot(q, s) with s_i = M_i where q_i > 0,
/// else m_i. Both factors of every term bound those of qk_dot(q, k_t) and rounding is monotone, so u >= qk_dot(q, k_t)
/// holds for the rounded values too; a page of one key has u equal to its bits.
float page_score(std::span<const float> q, std::span<const float> max, std::span<const float> min);

/// Pages that a budget of tokens loads.
std::int64_t page_capacity(LastPage rule, std::int64_t budget, std::int64_t page);

/// Ascending indices of the chosen pages; scores in page order, the last one is the open page's. All when they fit.
Slots choose_pages(LastPage rule, std::span<const float> scores, std::int64_t capacity);

/// The scores of a kv head's query heads [heads][pages] as one list.
std::vector<float> reduce_scores(Select select, const std::vector<std::vector<float>>& scores);

}  // namespace kvatlas::quest
