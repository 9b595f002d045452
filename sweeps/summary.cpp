#include "sweeps/summary.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "core/errors.hpp"
#include "sweeps/store.hpp"
#include "sweeps/where.hpp"

namespace kvatlas::sweep {

namespace {

constexpr std::int64_t kUsualContext = 32768;

using Pair = std::pair<std::string, std::string>;
using BestByPair = std::map<Pair, BestPoint>;

/// The point with the most tokens/s of every GPU and model at a context. With one max() in the list, SQLite takes the
/// other columns from the row that holds it.
BestByPair best_points(Database& db, std::int64_t context, const char* condition) {
  Statement s(db, cat("SELECT g.identity, ", model_name_sql(), ", t.recipe, p.batch, p.size_factor, max(p.tokens_per_s) FROM predictions p JOIN configurations c ON "
                      "c.id = p.configuration JOIN models m ON m.id = c.model JOIN gpus g ON g.id = c.gpu JOIN methods t ON t.id = c.method "
                      "WHERE p.fits = 1 AND p.context = ?", condition, " GROUP BY g.id, m.id"));
  s.bind(1, context);
  BestByPair best;
  while (s.step())
    best[{std::string(s.text(0)), std::string(s.text(1))}] = {.recipe = std::string(s.text(2)), .batch = static_cast<int>(s.integer(3)),
                                                              .tokens_per_s = s.number(5), .size_factor = s.number(4)};
  return best;
}

std::optional<BestPoint> find(const BestByPair& best, const Pair& pair) {
  const auto found = best.find(pair);
  return found == best.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace

StoreSummary summarize(const std::filesystem::path& store) {
  std::optional<Database> db;
  open_for_reading(db, store);
  StoreSummary out;
  out.file_bytes = static_cast<std::int64_t>(std::filesystem::file_size(store));
  std::map<Pair, std::int64_t> points;
  bool usual = false;
  std::int64_t longest = 0, last_configuration = -1;
  Statement s(*db, cat("SELECT g.identity, ", model_name_sql(), ", c.id, p.context, count(*) FROM predictions p JOIN configurations c ON c.id = p.configuration "
                       "JOIN models m ON m.id = c.model JOIN gpus g ON g.id = c.gpu GROUP BY c.id, p.context ORDER BY c.id, p.context"));
  while (s.step()) {
    points[{std::string(s.text(0)), std::string(s.text(1))}] += s.integer(4);
    out.points += s.integer(4);
    ++out.designs;
    out.configurations += s.integer(2) != last_configuration ? 1 : 0;
    last_configuration = s.integer(2);
    usual = usual || s.integer(3) == kUsualContext;
    longest = std::max(longest, s.integer(3));
  }
  out.workloads = db->integer("SELECT count(*) FROM workload_predictions");
  out.context = usual ? kUsualContext : longest;
  const BestByPair plain = best_points(*db, out.context, " AND t.recipe = 'full'");
  const BestByPair deployable = best_points(*db, out.context, " AND t.deployable = 1 AND t.recipe <> 'full'");
  const BestByPair best = best_points(*db, out.context, "");
  for (const auto& [pair, n] : points)
    out.pairs.push_back({.gpu = pair.first, .model = pair.second, .points = n, .plain = find(plain, pair),
                         .deployable = find(deployable, pair), .best = find(best, pair)});
  return out;
}

}  // namespace kvatlas::sweep
