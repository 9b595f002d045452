#include "reference/retrieval/quest/pages.hpp"

#include <algorithm>

#include "core/arith.hpp"
#include "core/errors.hpp"

namespace kvatlas::quest {

Bounds bounds_of(View<const float> k, std::span<const std::int64_t> rows) {
  KV_ASSERT(!rows.empty(), "a page holds at least one key");
  const auto first = k.row(rows[0]);
  Bounds b{.max = {first.begin(), first.end()}, .min = {first.begin(), first.end()}};
  for (const std::int64_t t : rows.subspan(1)) {
    const auto row = k.row(t);
    for (std::size_t c = 0; c < row.size(); ++c) {
      b.max[c] = num::max(row[c], b.max[c]);
      b.min[c] = num::min(row[c], b.min[c]);
    }
  }
  return b;
}

float page_score(std::span<const float> q, std::span<const float> max, std::span<const float> min) {
  std::vector<float> s(q.size());
  for (std::size_t i = 0; i < q.size(); ++i) s[i] = q[i] > 0 ? max[i] : min[i];
  return num::qk_dot(q, s);
}

std::int64_t page_capacity(LastPage rule, std::int64_t budget, std::int64_t page) {
  return rule == LastPage::python ? std::max<std::int64_t>(3, budget / page) : budget / page;
}

Slots choose_pages(LastPage rule, std::span<const float> scores, std::int64_t capacity) {
  const auto pages = static_cast<std::int64_t>(scores.size());
  if (rule == LastPage::python) return top_k(scores, std::min(capacity, pages));
  const std::int64_t closed = std::max<std::int64_t>(0, pages - 1);
  return with_tail(top_k(scores.first(static_cast<std::size_t>(closed)), std::clamp<std::int64_t>(capacity - 1, 0, closed)), closed, pages);
}

std::vector<float> reduce_scores(Select select, const std::vector<std::vector<float>>& scores) {
  std::vector<float> out = scores.front();
  for (std::size_t g = 1; g < scores.size(); ++g)
    for (std::size_t j = 0; j < out.size(); ++j)
      out[j] = select == Select::max ? num::max(out[j], scores[g][j]) : out[j] + scores[g][j];
  if (select == Select::mean)
    for (float& u : out) u /= static_cast<float>(scores.size());
  return out;
}

}  // namespace kvatlas::quest
