#include "sweeps/store.hpp"

#include <algorithm>
#include <cmath>
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "sweeps/caches.hpp"
#include "sweeps/schema.hpp"

namespace kvatlas::sweep {

using nlohmann::json;

namespace {

constexpr const char* kFigureColumns[] = {"context", "batch", "step_s", "low_s", "high_s", "attention_s", "matrix_s", "method_s",
                                          "other_s", "tokens_per_s", "speedup", "throughput_gain", "size_factor", "cache_bytes",
                                          "peak_bytes", "cache_read_bytes", "energy_j", "bound", "evidence", "fits"};

constexpr const char* kWorkloadFigureColumns[] = {"requests_per_s", "low_requests_per_s", "high_requests_per_s", "tokens_per_s", "ttft_s", "tpot_s", "prefill_s",
                                                  "step_s", "concurrency", "speedup", "speedup_decode_only", "size_factor", "cache_bytes", "peak_bytes",
                                                  "energy_j_per_token", "usd_per_mtok", "bound", "evidence", "feasible", "why_not"};

std::string insert_points_sql() {
  std::string columns = "key, configuration", marks = "?, ?";
  for (const char* c : kFigureColumns) {
    columns += cat(", ", c);
    marks += ", ?";
  }
  return cat("INSERT INTO predictions(", columns, ") VALUES(", marks, ")");
}

/// The id of the row whose unique `column` is `value`, inserted by `insert` when it is new.
template <class Value, class Insert>
std::int64_t id_of(Database& db, const char* table, const char* column, const Value& value, Insert&& insert) {
  {
    Statement find(db, cat("SELECT id FROM ", table, " WHERE ", column, " = ?"));
    find.bind(1, value);
    if (find.step()) return find.integer(0);
  }
  insert();
  return db.last_id();
}

std::int64_t model_id(Database& db, const models::Model& m) {
  const std::string identity = model_identity(m);
  return id_of(db, "models", "identity", std::string_view(identity), [&] {
    const std::string record = models::to_json(m).dump();
    Statement s(db, "INSERT INTO models(identity, slug, name, source, record) VALUES(?, ?, ?, ?, ?)");
    s.bind(1, identity).bind(2, m.slug).bind(3, m.name).bind(4, m.source).bind(5, record).run();
  });
}

std::int64_t gpu_id(Database& db, const sim::Gpu& g) {
  const std::string identity = sim::canonical(g);
  return id_of(db, "gpus", "identity", std::string_view(identity), [&] {
    Statement s(db, "INSERT INTO gpus(identity, slug, name) VALUES(?, ?, ?)");
    s.bind(1, identity).bind(2, g.slug).bind(3, g.name).run();
  });
}

std::int64_t method_id(Database& db, const Recipe& r) {
  const std::string recipe = r.canonical();
  return id_of(db, "methods", "recipe", std::string_view(recipe), [&] {
    bool deployable = true;
    for (const Rule& rule : r.rules())
      for (const MethodChoice* c : {&rule.key, &rule.value})
        deployable = deployable && (c->method->family == Family::baseline || !c->method->deployable.empty());
    const Method& main = r.main();
    json params = json::object();
    for (std::size_t i = 0; i < main.params.size(); ++i) params[main.params[i].name] = format_value(main.params[i], r.rules().back().key.row[i]);
    const std::string text = params.dump();
    Statement s(db, "INSERT INTO methods(recipe, slug, family, params, deployable) VALUES(?, ?, ?, ?, ?)");
    s.bind(1, recipe).bind(2, main.slug).bind(3, name_of(main.family)).bind(4, text).bind(5, deployable ? 1 : 0).run();
  });
}

std::int64_t workload_id(Database& db, const sim::Workload& w) {
  const std::string text = to_json(w).dump();
  const Key key = murmur3(text);
  return id_of(db, "workloads", "key", key, [&] {
    Statement s(db, "INSERT INTO workloads(key, prompt, output, prefix_hit, turns, rate, concurrency, slo_ttft_s, slo_tpot_s, canonical) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    s.bind(1, key).bind(2, w.prompt.value).bind(3, w.output.value).bind(4, w.prefix_hit).bind(5, w.turns).bind(6, w.rate);
    if (w.concurrency) s.bind(7, *w.concurrency);
    s.bind(8, w.slo.ttft_s).bind(9, w.slo.tpot_s).bind(10, text).run();
  });
}

}  // namespace

std::vector<std::string> figure_columns() { return {std::begin(kFigureColumns), std::end(kFigureColumns)}; }
std::vector<std::string> workload_figure_columns() { return {std::begin(kWorkloadFigureColumns), std::end(kWorkloadFigureColumns)}; }

Store::Store(const std::filesystem::path& path) : db_(path, Database::Mode::create) {
  prepare_schema(db_);
  require_code_version(db_);
  // NORMAL: a kill loses nothing that was committed, a power cut at most the last commits, neither damages the file.
  db_.exec("PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=4096; PRAGMA cache_size=-65536; PRAGMA temp_store=MEMORY");
  insert_point_.emplace(db_, insert_points_sql());
  insert_workload_.emplace(db_, "INSERT INTO workload_predictions VALUES(NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
  insert_infeasible_.emplace(db_, "INSERT OR REPLACE INTO infeasible VALUES(?, ?, ?)");
  insert_progress_.emplace(db_, "INSERT OR REPLACE INTO progress VALUES(?, ?, ?, ?)");
}

Store::Run Store::begin(const Spec& spec, const WorkList& work, const Shard& shard) {
  Run run;
  Transaction t(db_);
  const std::string hash = hex(spec.hash), part = cat(shard.index, "/", shard.count);
  {
    Statement s(db_, "INSERT INTO runs(code_version, spec_hash, shard, state, points, infeasible, spec) VALUES(?, ?, ?, 'running', 0, 0, ?) "
                     "ON CONFLICT(spec_hash, shard) DO UPDATE SET state = 'running'");
    s.bind(1, code_version()).bind(2, hash).bind(3, part).bind(4, spec.text).run();
    Statement id(db_, "SELECT id FROM runs WHERE spec_hash = ? AND shard = ?");
    id.bind(1, hash).bind(2, part);
    id.step();
    run.id = id.integer(0);
  }
  std::vector<std::int64_t> models, gpus, methods;
  for (const models::Model& m : spec.models) models.push_back(model_id(db_, m));
  for (const sim::Gpu& g : spec.gpus) gpus.push_back(gpu_id(db_, g));
  for (const Recipe& r : spec.recipes) methods.push_back(method_id(db_, r));
  for (const sim::Workload& w : spec.workloads) run.workload_ids.push_back(workload_id(db_, w));
  Statement find(db_, "SELECT id FROM configurations WHERE key = ?");
  Statement add(db_, "INSERT INTO configurations(key, model, gpu, method, weights, engine, tp, plan, provenance, canonical) VALUES(?, ?, ?, ?, ?, ?, ?, ?, 'computed', ?)");
  std::map<std::int64_t, std::size_t> place;
  for (const Configuration& c : work.configurations) {
    find.bind(1, c.key);
    const bool known = find.step();
    std::int64_t id = known ? find.integer(0) : 0;
    find.reset();
    if (!known) {
      add.bind(1, c.key).bind(2, models[c.model]).bind(3, gpus[c.gpu]).bind(4, methods[c.recipe]).bind(5, sim::name_of(c.weights));
      add.bind(6, c.engine->slug).bind(7, c.tp).bind(8, c.released ? "released" : "ideal").bind(9, c.text).run();
      id = db_.last_id();
    }
    place[id] = run.configuration_ids.size();
    run.configuration_ids.push_back(id);
  }
  run.done.assign(work.configurations.size(), 0);
  {
    Statement s(db_, "SELECT configuration, points, infeasible FROM progress WHERE run = ?");
    s.bind(1, run.id);
    while (s.step())
      if (const auto at = place.find(s.integer(0)); at != place.end()) {
        run.done[at->second] = 1;
        run.done_points += s.integer(1);
        run.done_infeasible += s.integer(2);
      }
  }
  store_caches(db_, spec, models, methods);
  t.commit();
  run.present.reserve(static_cast<std::size_t>(db_.integer("SELECT count(*) FROM predictions")));
  Statement rows(db_, "SELECT key, configuration, context, batch, step_s, cache_bytes FROM predictions");
  while (rows.step()) {
    run.present.insert(rows.key(0));
    run.samples.try_emplace(rows.integer(1), Sample{Tokens(rows.integer(2)), static_cast<int>(rows.integer(3)), rows.number(4), rows.number(5)});
  }
  Statement served(db_, "SELECT key FROM workload_predictions");
  while (served.step()) run.present.insert(served.key(0));
  return run;
}

void Store::open_batch() {
  if (!batch_) batch_.emplace(db_);
}

void Store::commit_batch() {
  if (!batch_) return;
  batch_->commit();
  batch_.reset();
}

void Store::add(const Run& run, const Block& block) {
  open_batch();
  const std::int64_t configuration = run.configuration_ids[block.configuration];
  if (!block.points.empty() && !index_dropped_) {  // appending under the index would cost ten times as much as building it
    db_.exec("DROP INDEX IF EXISTS predictions_key");
    index_dropped_ = true;
  }
  for (const Point& p : block.points) {
    const sim::StepFigures& f = p.figures;
    Statement& s = *insert_point_;
    s.bind(1, p.key).bind(2, configuration).bind(3, p.context.value).bind(4, p.batch);
    s.bind(5, f.step_s).bind(6, f.low_s).bind(7, f.high_s).bind(8, f.attention_s).bind(9, f.matrix_s).bind(10, f.method_s);
    s.bind(11, f.other_s).bind(12, f.tokens_per_s(p.batch)).bind(13, p.speedup).bind(14, p.throughput_gain).bind(15, p.size_factor);
    s.bind(16, f.cache_bytes).bind(17, f.peak_bytes).bind(18, f.cache_read_bytes).bind(19, f.energy_j);
    s.bind(20, sim::name_of(f.bound)).bind(21, sim::name_of(f.evidence)).bind(22, f.fits ? 1 : 0);
    s.run();
  }
  for (const WorkloadPoint& w : block.workloads) {
    const sim::WorkloadFigures& f = w.figures;
    Statement& s = *insert_workload_;
    s.bind(1, w.key).bind(2, configuration).bind(3, run.workload_ids[w.workload]);
    for (int i = 4; i <= 21; ++i) s.bind_null(i);
    if (f.feasible) {  // figures of a workload that cannot be served are unknown, not 0
      s.bind(4, f.requests_per_s).bind(5, f.low_requests_per_s).bind(6, f.high_requests_per_s).bind(7, f.tokens_per_s);
      s.bind(8, f.ttft_s).bind(9, f.tpot_s).bind(10, f.prefill_s).bind(11, f.step_s).bind(12, f.concurrency);
      s.bind(13, w.speedup).bind(14, w.speedup_decode_only).bind(15, f.size_factor).bind(16, f.cache_bytes).bind(17, f.peak_bytes);
      s.bind(18, f.energy_j_per_token).bind(19, f.usd_per_mtok).bind(20, sim::name_of(f.bound)).bind(21, sim::name_of(f.evidence));
    }
    s.bind(22, f.feasible ? 1 : 0).bind(23, f.why_not).run();
  }
  for (const InfeasiblePoint& i : block.infeasible)
    insert_infeasible_->bind(1, configuration).bind(2, i.context.value).bind(3, i.sentence).run();
  if (block.last) insert_progress_->bind(1, run.id).bind(2, configuration).bind(3, block.total_points).bind(4, block.total_infeasible).run();
}

void Store::finish(const Run& run, bool complete) {
  commit_batch();
  {
    Transaction t(db_);
    Statement s(db_, "UPDATE runs SET state = ?, points = (SELECT coalesce(sum(points), 0) FROM progress WHERE run = runs.id), "
                     "infeasible = (SELECT coalesce(sum(infeasible), 0) FROM progress WHERE run = runs.id) WHERE id = ?");
    s.bind(1, complete ? "complete" : "interrupted").bind(2, run.id).run();
    t.commit();
  }
  if (complete) {
    build_index(db_);
    index_dropped_ = false;
    // Without a log, whoever reads the finished store leaves no files beside it and needs no right to make any.
    db_.exec("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=DELETE");
  }
}

void build_index(Database& db) {
  db.exec("PRAGMA threads=2");  // keys are sorted beside the scan that reads them
  constexpr const char* kCreate = "CREATE UNIQUE INDEX IF NOT EXISTS predictions_key ON predictions(key)";
  try {
    db.exec(kCreate);
    return;
  } catch (const IoError&) {
    if (db.integer("SELECT count(*) - count(DISTINCT key) FROM predictions") == 0) throw;
  }
  // Twin rows can only come from outside, since a writer knows every key of its file; the older one stays.
  Transaction t(db);
  db.exec("CREATE INDEX predictions_probe ON predictions(key)");
  db.exec("DELETE FROM predictions WHERE id IN (SELECT b.id FROM predictions a JOIN predictions b ON a.key = b.key AND a.id < b.id)");
  db.exec("DROP INDEX predictions_probe");
  db.exec(kCreate);
  t.commit();
}

void open_for_reading(std::optional<Database>& db, const std::filesystem::path& path, int oldest) {
  db.emplace(path, Database::Mode::read);
  require_schema(*db, oldest);
}

void write_dump(Database& db, std::ostream& out) {
  std::string columns;
  for (const char* c : kFigureColumns) columns += cat(", p.", c);
  Statement s(db, cat("SELECT p.key, c.key", columns, " FROM predictions p JOIN configurations c ON c.id = p.configuration ORDER BY p.key"));
  while (s.step()) {
    out << hex(s.key(0)) << ' ' << hex(s.key(1));
    for (int i = 2; i < s.columns(); ++i) {
      out << ' ';
      if (s.is_null(i)) out << "null";
      else if (s.is_text(i)) out << s.text(i);
      else if (s.is_integer(i)) out << s.integer(i);
      else out << fmt::format("{:a}", s.number(i));
    }
    out << '\n';
  }
}

}  // namespace kvatlas::sweep
