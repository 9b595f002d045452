#include "sweeps/quality.hpp"

#include "sweeps/store.hpp"

namespace kvatlas::sweep {

void store_quality(const std::filesystem::path& path, std::span<const QualityRow> rows) {
  Store store(path);
  store.open_batch();
  {
    Statement s(store.database(),
                "INSERT OR REPLACE INTO quality(model, recipe, quality_model, metric, value, retained, context, protocol, n, ci95_low, ci95_high, grade, source, provenance,"
                " dtype, seed, text_hash, scored, windows, chunk, trials, trained_hash) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'measured', ?, ?, ?, ?, ?, ?, ?, ?)");
    for (const QualityRow& r : rows) {
      s.bind(1, r.model).bind(2, r.recipe).bind(3, r.quality_model).bind(4, r.metric).bind(5, r.value).bind(6, r.retained).bind(7, r.context);
      s.bind(8, r.protocol).bind(9, r.n).bind(10, r.ci95_low).bind(11, r.ci95_high).bind(12, r.grade).bind(13, r.source);
      s.bind(14, r.dtype).bind(15, r.seed).bind(16, r.text_hash).bind(17, r.scored).bind(18, r.windows).bind(19, r.chunk);
      s.bind(20, r.trials).bind(21, r.trained_hash);
      s.run();
    }
  }
  store.commit_batch();
}

}  // namespace kvatlas::sweep
