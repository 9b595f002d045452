#include "sweeps/schema.hpp"

#include "core/errors.hpp"

namespace kvatlas::sweep {

namespace {

// Version 1. Every statement of a version stays as it is; later versions add to kMigrations.
constexpr const char* kVersion1 = R"(
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE models(
  id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, slug TEXT NOT NULL, name TEXT NOT NULL, source TEXT NOT NULL,
  record TEXT NOT NULL) STRICT;
CREATE TABLE gpus(id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, slug TEXT NOT NULL, name TEXT NOT NULL) STRICT;
CREATE TABLE methods(
  id INTEGER PRIMARY KEY, recipe TEXT NOT NULL UNIQUE, slug TEXT NOT NULL, family TEXT NOT NULL, params TEXT NOT NULL,
  deployable INTEGER NOT NULL) STRICT;
CREATE TABLE configurations(
  id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, model INTEGER NOT NULL REFERENCES models(id),
  gpu INTEGER NOT NULL REFERENCES gpus(id), method INTEGER NOT NULL REFERENCES methods(id),
  weights TEXT NOT NULL, engine TEXT NOT NULL, tp INTEGER NOT NULL, plan TEXT NOT NULL, provenance TEXT NOT NULL,
  canonical TEXT NOT NULL) STRICT;
CREATE TABLE workloads(
  id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, prompt INTEGER NOT NULL, output INTEGER NOT NULL, prefix_hit REAL NOT NULL,
  turns INTEGER NOT NULL, rate REAL, concurrency INTEGER, slo_ttft_s REAL, slo_tpot_s REAL, canonical TEXT NOT NULL) STRICT;
CREATE TABLE predictions(
  id INTEGER PRIMARY KEY, key BLOB NOT NULL, configuration INTEGER NOT NULL REFERENCES configurations(id),
  context INTEGER NOT NULL, batch INTEGER NOT NULL, step_s REAL NOT NULL, low_s REAL NOT NULL, high_s REAL NOT NULL,
  attention_s REAL NOT NULL, matrix_s REAL NOT NULL, method_s REAL NOT NULL, other_s REAL NOT NULL,
  tokens_per_s REAL NOT NULL, speedup REAL, throughput_gain REAL, size_factor REAL NOT NULL, cache_bytes REAL NOT NULL,
  peak_bytes REAL NOT NULL, cache_read_bytes REAL NOT NULL, energy_j REAL NOT NULL, bound TEXT NOT NULL,
  evidence TEXT NOT NULL, fits INTEGER NOT NULL) STRICT;
CREATE TABLE workload_predictions(
  id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, configuration INTEGER NOT NULL REFERENCES configurations(id),
  workload INTEGER NOT NULL REFERENCES workloads(id), requests_per_s REAL, low_requests_per_s REAL, high_requests_per_s REAL,
  tokens_per_s REAL, ttft_s REAL, tpot_s REAL, prefill_s REAL, step_s REAL, concurrency INTEGER, speedup REAL,
  speedup_decode_only REAL, size_factor REAL, cache_bytes REAL, peak_bytes REAL, energy_j_per_token REAL, usd_per_mtok REAL,
  bound TEXT, evidence TEXT, feasible INTEGER NOT NULL, why_not TEXT NOT NULL) STRICT;
CREATE TABLE infeasible(
  configuration INTEGER NOT NULL REFERENCES configurations(id), context INTEGER NOT NULL, sentence TEXT NOT NULL,
  PRIMARY KEY(configuration, context)) STRICT, WITHOUT ROWID;
CREATE TABLE runs(
  id INTEGER PRIMARY KEY, code_version TEXT NOT NULL, spec_hash TEXT NOT NULL, shard TEXT NOT NULL, state TEXT NOT NULL,
  points INTEGER NOT NULL, infeasible INTEGER NOT NULL, spec TEXT NOT NULL,
  UNIQUE(spec_hash, shard)) STRICT;
CREATE TABLE progress(
  run INTEGER NOT NULL REFERENCES runs(id), configuration INTEGER NOT NULL REFERENCES configurations(id),
  points INTEGER NOT NULL, infeasible INTEGER NOT NULL, PRIMARY KEY(run, configuration)) STRICT, WITHOUT ROWID;
CREATE TABLE quality(
  id INTEGER PRIMARY KEY, model TEXT NOT NULL, recipe TEXT NOT NULL, quality_model TEXT NOT NULL, metric TEXT NOT NULL,
  value REAL NOT NULL, retained REAL, context INTEGER, protocol TEXT NOT NULL, n INTEGER, ci95_low REAL, ci95_high REAL,
  grade TEXT NOT NULL CHECK(grade IN ('M', 'C', 'P', 'F', 'X')), source TEXT NOT NULL, provenance TEXT NOT NULL,
  UNIQUE(model, recipe, quality_model, metric, context, protocol)) STRICT;
CREATE TABLE measurements(
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL, gpu TEXT NOT NULL, profile TEXT NOT NULL, setup TEXT NOT NULL,
  value REAL NOT NULL, unit TEXT NOT NULL, source TEXT NOT NULL, provenance TEXT NOT NULL) STRICT;
CREATE TABLE claims(
  id INTEGER PRIMARY KEY, method TEXT NOT NULL, metric TEXT NOT NULL, published REAL, ours REAL, setup TEXT NOT NULL,
  verdict TEXT NOT NULL, why TEXT NOT NULL, source TEXT NOT NULL, provenance TEXT NOT NULL) STRICT;
CREATE TABLE imported(
  id INTEGER PRIMARY KEY, tool TEXT NOT NULL, file TEXT NOT NULL, model TEXT, recipe TEXT, metric TEXT NOT NULL,
  value REAL NOT NULL, setup TEXT NOT NULL, provenance TEXT NOT NULL) STRICT;
)";

// Version 2: one view with every name of a point spelled out, for people who bring their own SQL.
constexpr const char* kVersion2 = R"(
CREATE VIEW points AS
SELECT lower(hex(p.key)) AS key, m.slug AS model, g.slug AS gpu, t.slug AS method, t.recipe AS recipe, t.family AS family,
  t.deployable AS deployable, c.weights AS weights, c.engine AS engine, c.tp AS tp, c.plan AS plan, p.context AS context,
  p.batch AS batch, p.step_s * 1000.0 AS step_ms, p.low_s * 1000.0 AS low_ms, p.high_s * 1000.0 AS high_ms,
  p.attention_s * 1000.0 AS attention_ms, p.matrix_s * 1000.0 AS matrix_ms, p.method_s * 1000.0 AS method_ms,
  p.other_s * 1000.0 AS other_ms, p.tokens_per_s AS tokens_per_s, p.speedup AS speedup, p.throughput_gain AS throughput_gain,
  p.size_factor AS size_factor, p.cache_bytes AS cache_bytes, p.peak_bytes AS peak_bytes,
  p.cache_read_bytes AS cache_read_bytes, p.energy_j / p.batch AS energy_j_per_token, p.bound AS bound_by,
  p.evidence AS evidence, p.fits AS fits, c.provenance AS provenance
FROM predictions p JOIN configurations c ON c.id = p.configuration JOIN models m ON m.id = c.model
  JOIN gpus g ON g.id = c.gpu JOIN methods t ON t.id = c.method;
)";

// Version 3: what the cache of a recipe consists of, predictions beside measurements, and how a claim was read.
constexpr const char* kVersion3 = R"(
CREATE TABLE caches(
  model INTEGER NOT NULL REFERENCES models(id), method INTEGER NOT NULL REFERENCES methods(id), context INTEGER NOT NULL,
  bytes INTEGER NOT NULL, dense_bytes INTEGER NOT NULL, bits_per_value REAL NOT NULL, forgets INTEGER NOT NULL,
  PRIMARY KEY(model, method, context)) STRICT, WITHOUT ROWID;
CREATE TABLE ledgers(
  model INTEGER NOT NULL REFERENCES models(id), method INTEGER NOT NULL REFERENCES methods(id), context INTEGER NOT NULL,
  component TEXT NOT NULL, side TEXT NOT NULL, scope TEXT NOT NULL, bytes INTEGER NOT NULL, bits_per_value REAL NOT NULL,
  PRIMARY KEY(model, method, context, component, side)) STRICT, WITHOUT ROWID;
CREATE TABLE validation(
  kind TEXT NOT NULL, gpu TEXT NOT NULL, profile TEXT NOT NULL, kv_dtype TEXT NOT NULL, subset TEXT NOT NULL, rows INTEGER NOT NULL,
  median_ape REAL NOT NULL, mean_ape REAL NOT NULL, p90_ape REAL NOT NULL, bias REAL NOT NULL, coverage_80 REAL NOT NULL,
  interval_width REAL NOT NULL, roofline_mean_ape REAL NOT NULL, scaled_mean_ape REAL NOT NULL,
  PRIMARY KEY(kind, gpu, profile, kv_dtype, subset)) STRICT, WITHOUT ROWID;
ALTER TABLE measurements ADD COLUMN subset TEXT;
ALTER TABLE measurements ADD COLUMN predicted REAL;
ALTER TABLE measurements ADD COLUMN low REAL;
ALTER TABLE measurements ADD COLUMN high REAL;
ALTER TABLE claims ADD COLUMN unit TEXT;
ALTER TABLE claims ADD COLUMN ours_if REAL;
ALTER TABLE claims ADD COLUMN change TEXT;
)";

// Version 4: figures of quality under other settings stand beside each other. What an older store does not say is empty or 0, so that
// every key compares.
constexpr const char* kVersion4 = R"(
CREATE TABLE quality4(
  id INTEGER PRIMARY KEY, model TEXT NOT NULL, recipe TEXT NOT NULL, quality_model TEXT NOT NULL, metric TEXT NOT NULL,
  value REAL NOT NULL, retained REAL, context INTEGER, protocol TEXT NOT NULL, n INTEGER, ci95_low REAL, ci95_high REAL,
  grade TEXT NOT NULL CHECK(grade IN ('M', 'C', 'P', 'F', 'X')), source TEXT NOT NULL, provenance TEXT NOT NULL,
  dtype TEXT NOT NULL DEFAULT '', seed INTEGER NOT NULL DEFAULT 0, text_hash TEXT NOT NULL DEFAULT '',
  scored INTEGER NOT NULL DEFAULT 0, windows INTEGER NOT NULL DEFAULT 0, chunk INTEGER NOT NULL DEFAULT 0,
  UNIQUE(model, recipe, quality_model, metric, context, protocol, dtype, seed, text_hash, scored, windows, chunk)) STRICT;
INSERT INTO quality4(id, model, recipe, quality_model, metric, value, retained, context, protocol, n, ci95_low, ci95_high, grade, source,
  provenance)
SELECT id, model, recipe, quality_model, metric, value, retained, context, protocol, n, ci95_low, ci95_high, grade, source, provenance
FROM quality;
DROP TABLE quality;
ALTER TABLE quality4 RENAME TO quality;
)";

// Version 5: the number of a task's cases and the file of trained parts are settings, too.
constexpr const char* kVersion5 = R"(
CREATE TABLE quality5(
  id INTEGER PRIMARY KEY, model TEXT NOT NULL, recipe TEXT NOT NULL, quality_model TEXT NOT NULL, metric TEXT NOT NULL,
  value REAL NOT NULL, retained REAL, context INTEGER, protocol TEXT NOT NULL, n INTEGER, ci95_low REAL, ci95_high REAL,
  grade TEXT NOT NULL CHECK(grade IN ('M', 'C', 'P', 'F', 'X')), source TEXT NOT NULL, provenance TEXT NOT NULL,
  dtype TEXT NOT NULL DEFAULT '', seed INTEGER NOT NULL DEFAULT 0, text_hash TEXT NOT NULL DEFAULT '',
  scored INTEGER NOT NULL DEFAULT 0, windows INTEGER NOT NULL DEFAULT 0, chunk INTEGER NOT NULL DEFAULT 0,
  trials INTEGER NOT NULL DEFAULT 0, trained_hash TEXT NOT NULL DEFAULT '',
  UNIQUE(model, recipe, quality_model, metric, context, protocol, dtype, seed, text_hash, scored, windows, chunk, trials, trained_hash)) STRICT;
INSERT INTO quality5(id, model, recipe, quality_model, metric, value, retained, context, protocol, n, ci95_low, ci95_high, grade, source,
  provenance, dtype, seed, text_hash, scored, windows, chunk)
SELECT id, model, recipe, quality_model, metric, value, retained, context, protocol, n, ci95_low, ci95_high, grade, source, provenance,
  dtype, seed, text_hash, scored, windows, chunk
FROM quality;
DROP TABLE quality;
ALTER TABLE quality5 RENAME TO quality;
)";

constexpr const char* kMigrations[] = {kVersion1, kVersion2, kVersion3, kVersion4, kVersion5};
static_assert(std::size(kMigrations) == kSchemaVersion);

}  // namespace

const char* code_version() { return KVATLAS_VERSION; }

void prepare_schema(Database& db, int version) {
  KV_ASSERT(version >= 1 && version <= kSchemaVersion, "a version that has its migrations");
  const std::int64_t id = db.integer("PRAGMA application_id"), found = db.integer("PRAGMA user_version");
  const bool empty = id == 0 && found == 0 && db.integer("SELECT count(*) FROM sqlite_schema") == 0;
  if (!empty) require_schema(db, 0);
  if (empty) db.exec("PRAGMA page_size=8192");
  db.exec("PRAGMA journal_mode=WAL");
  if (found >= version) return;
  Transaction t(db);
  for (std::int64_t v = found; v < version; ++v) db.exec(kMigrations[v]);
  if (empty) {
    Statement s(db, "INSERT INTO meta VALUES('code_version', ?)");
    s.bind(1, code_version()).run();
  }
  db.exec(cat("PRAGMA application_id=", kApplicationId, "; PRAGMA user_version=", version));
  t.commit();
}

void require_schema(Database& db, int oldest) {
  const std::int64_t id = db.integer("PRAGMA application_id"), version = db.integer("PRAGMA user_version");
  if (id != kApplicationId) throw IoError(cat(db.path().string(), ": not a kvatlas store, an SQLite database of something else"));
  if (version > kSchemaVersion)
    throw IoError(cat(db.path().string(), ": store version ", version, " is newer than this program's ", kSchemaVersion, "; use the program that wrote it, or a newer one"));
  if (version < oldest)
    throw IoError(cat(db.path().string(), ": store version ", version, " lacks what is asked for, it must be at least ", oldest, "; run any sweep into it to migrate it"));
}

void require_code_version(Database& db) {
  Statement s(db, "SELECT value FROM meta WHERE name = 'code_version'");
  const std::string found = s.step() ? std::string(s.text(0)) : std::string("unknown");
  if (found != code_version())
    throw IoError(cat(db.path().string(), ": written by kvatlas ", found, ", this is ", code_version(), "; sweep into a new file and compare the two with diff"));
}

}  // namespace kvatlas::sweep
