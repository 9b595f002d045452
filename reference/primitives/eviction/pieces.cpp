#include "reference/primitives/eviction/pieces.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/arith64.hpp"
#include "core/errors.hpp"

namespace kvatlas::eviction {

namespace {

/// Rows of `scene` at the listed slots, head by head, as a store of their own (float32 holds any stored value).
TokenRows rows_at(const Scene& scene, const std::vector<Array>& keys, const std::vector<Array>& values, const std::vector<Slots>& slots) {
  TokenRows part(scene.rows.heads(), scene.c.k_dim, scene.c.v_dim, Dtype::f32);
  for (std::size_t h = 0; h < slots.size(); ++h)
    for (const std::int64_t s : slots[h]) part.append(static_cast<int>(h), keys[h].view().row(s), values[h].view().row(s));
  return part;
}

/// Scores of some slots of every head as if nothing else were held.
class Parts {
 public:
  Parts(const Scorer& base, const Scene& scene) : base_(base), scene_(scene) {
    for (int h = 0; h < scene.rows.heads(); ++h) {
      keys_.push_back(scene.rows.keys(h));
      values_.push_back(scene.rows.values(h));
    }
  }
  Scores score(const std::vector<Slots>& slots) const {
    const TokenRows part = rows_at(scene_, keys_, values_, slots);
    return base_.score({.c = scene_.c, .place = scene_.place, .rows = part, .queries = scene_.queries, .rope = scene_.rope, .prompt = scene_.prompt});
  }

 private:
  const Scorer& base_;
  const Scene& scene_;
  std::vector<Array> keys_, values_;
};

Slots range(std::int64_t first, std::int64_t end) {
  Slots slots(static_cast<std::size_t>(end - first));
  std::iota(slots.begin(), slots.end(), first);
  return slots;
}

Scores none_chosen(const Scene& scene) {
  return Scores(static_cast<std::size_t>(scene.rows.heads()), std::vector<float>(static_cast<std::size_t>(scene.rows.count(0)), 0.0F));
}

}  // namespace

Scorer scorer_of(KeyScore base) { return base == KeyScore::knorm ? key_norm() : key_difference(); }

std::int64_t kept_of(std::int64_t count, double ratio) {
  return std::max<std::int64_t>(std::min<std::int64_t>(1, count), static_cast<std::int64_t>(std::trunc(static_cast<double>(count) * (1 - ratio))));
}

std::int64_t chunks_keep(std::int64_t rows, std::int64_t length, double ratio) {
  return rows / length * kept_of(length, ratio) + kept_of(rows % length, ratio);
}

Scores choose_by_chunks(const Scorer& base, const Scene& scene, std::int64_t length, double ratio) {
  const Parts parts(base, scene);
  Scores chosen = none_chosen(scene);
  const std::int64_t rows = scene.rows.count(0);
  for (std::int64_t first = 0; first < rows; first += length) {
    const std::int64_t end = std::min(first + length, rows);
    const Scores scores = parts.score(std::vector<Slots>(chosen.size(), range(first, end)));
    for (std::size_t h = 0; h < chosen.size(); ++h)
      for (const std::int64_t s : top_k(scores[h], kept_of(end - first, ratio))) chosen[h][static_cast<std::size_t>(first + s)] = 1.0F;
  }
  return chosen;
}

Scores choose_by_blocks(const Scorer& base, const Scene& scene, std::int64_t budget, std::int64_t block) {
  const Parts parts(base, scene);
  Scores chosen = none_chosen(scene);
  const std::int64_t rows = scene.rows.count(0);
  std::vector<Slots> kept(chosen.size(), range(0, std::min(budget, rows)));
  for (std::int64_t first = budget; first < rows; first += block) {
    for (Slots& slots : kept) slots = with_tail(std::move(slots), first, std::min(first + block, rows));
    const Scores scores = parts.score(kept);
    for (std::size_t h = 0; h < kept.size(); ++h) {
      Slots best;
      for (const std::int64_t s : top_k(scores[h], budget)) best.push_back(kept[h][static_cast<std::size_t>(s)]);
      kept[h] = std::move(best);
    }
  }
  for (std::size_t h = 0; h < kept.size(); ++h)
    for (const std::int64_t s : kept[h]) chosen[h][static_cast<std::size_t>(s)] = 1.0F;
  return chosen;
}

std::vector<float> choose_with_lot(std::span<const float> scores, std::int64_t k, std::int64_t drawn, double temperature,
                                   const std::function<float(std::int64_t slot)>& uniform) {
  const auto size = static_cast<std::int64_t>(scores.size());
  std::vector<float> chosen(scores.size(), 0.0F);
  for (const std::int64_t s : top_k(scores, std::min(size, k - drawn))) chosen[static_cast<std::size_t>(s)] = 1.0F;
  std::vector<float> lots;
  Slots others;
  for (std::int64_t s = 0; s < size; ++s) {
    if (chosen[static_cast<std::size_t>(s)] > 0) continue;
    const double u = (static_cast<double>(uniform(s)) + 0x1p-25);  // never 0
    lots.push_back(static_cast<float>(static_cast<double>(scores[static_cast<std::size_t>(s)]) / temperature - num::log(-num::log(u))));
    others.push_back(s);
  }
  for (const std::int64_t i : top_k(lots, std::min(drawn, static_cast<std::int64_t>(lots.size()))))
    chosen[static_cast<std::size_t>(others[static_cast<std::size_t>(i)])] = 1.0F;
  return chosen;
}

}  // namespace kvatlas::eviction
