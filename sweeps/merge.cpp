#include "sweeps/merge.hpp"

#include <algorithm>
#include <optional>
#include <system_error>
#include <utility>

#include "core/errors.hpp"
#include "sweeps/schema.hpp"
#include "sweeps/store.hpp"

namespace kvatlas::sweep {

namespace {

std::string joined(const std::vector<std::string>& names, std::string_view prefix) {
  std::string text;
  for (const std::string& n : names) text += cat(text.empty() ? "" : ", ", prefix, n);
  return text;
}

std::vector<std::string> columns_of(Database& db, const char* table) {
  std::vector<std::string> names;
  Statement s(db, cat("SELECT name FROM pragma_table_info('", table, "')"));
  while (s.step())
    if (s.text(0) != "id") names.emplace_back(s.text(0));
  return names;
}

std::string code_version_of(Database& db) {
  Statement s(db, "SELECT value FROM meta WHERE name = 'code_version'");
  return s.step() ? std::string(s.text(0)) : std::string("unknown");
}

void add_conflict(MergeReport& report, const std::string& example) {
  ++report.conflicts;
  if (report.examples.size() < 5) report.examples.push_back(example);
}

/// Rows of a table without references, unless an equal row is there.
void copy_plain(Database& db, const char* table) {
  const std::string columns = joined(columns_of(db, table), "");
  db.exec(cat("INSERT OR IGNORE INTO main.", table, "(", columns, ") SELECT ", columns, " FROM source.", table, " EXCEPT SELECT ", columns, " FROM main.", table));
}

/// What differs between the rows of one key: columns are ours, so no text of a file gets into the statement.
std::string differs(const std::vector<std::string>& columns) {
  std::string sql;
  for (const std::string& c : columns) sql += cat(sql.empty() ? "NOT (" : " AND ", "a.", c, " IS b.", c);
  return sql + ")";
}

std::vector<std::string> without(std::vector<std::string> columns, const std::vector<std::string>& left_out) {
  std::erase_if(columns, [&](const std::string& c) { return std::find(left_out.begin(), left_out.end(), c) != left_out.end(); });
  return columns;
}

/// The columns of a table's one UNIQUE constraint: the schema is the only place that lists them.
std::vector<std::string> key_of(Database& db, const char* table) {
  std::vector<std::string> names;
  Statement s(db, cat("SELECT i.name FROM pragma_index_list('", table, "') l, pragma_index_info(l.name) i WHERE l.origin = 'u' ORDER BY l.seq, i.seqno"));
  while (s.step()) names.emplace_back(s.text(0));
  KV_ASSERT(!names.empty(), "the table has a UNIQUE constraint");
  return names;
}

/// Judgements of quality. A key whose context is unknown counts as equal to itself, which the table's own constraint does not see.
void copy_quality(Database& db, const std::filesystem::path& input, MergeReport& report) {
  const std::vector<std::string> key = key_of(db, "quality");
  const std::vector<std::string> columns = columns_of(db, "quality");
  std::string same;
  for (const std::string& c : key) same += cat(same.empty() ? "" : " AND ", "a.", c, " IS b.", c);
  db.exec(cat("INSERT INTO main.quality(", joined(columns, ""), ") SELECT ", joined(columns, "b."), " FROM source.quality b WHERE NOT EXISTS(SELECT 1 FROM main.quality a WHERE ", same,
              ") AND b.id = (SELECT min(a.id) FROM source.quality a WHERE ", same, ") ORDER BY b.id"));
  Statement s(db, cat("SELECT b.metric, b.recipe, b.model FROM source.quality b JOIN main.quality a ON ", same, " WHERE ", differs(without(columns, key)), " ORDER BY b.id"));
  while (s.step()) add_conflict(report, cat("quality: ", s.text(0), " of ", s.text(1), " on ", s.text(2), " is another row in ", input.string()));
}

/// Tables that one command writes as a whole, so that rows of two runs must never stand side by side.
void copy_block(Database& db, const std::filesystem::path& input, const std::vector<const char*>& tables, const char* command, MergeReport& report) {
  bool ours = false, theirs = false, equal = true;
  for (const char* table : tables) {
    const std::string columns = joined(columns_of(db, table), "");
    const auto rows = [&](const char* store) { return cat("SELECT ", columns, ", count(*) FROM ", store, ".", table, " GROUP BY ", columns); };
    const auto less = [&](const char* a, const char* b) { return db.integer(cat("SELECT count(*) FROM (", rows(a), " EXCEPT ", rows(b), ")")); };
    ours = ours || db.integer(cat("SELECT EXISTS(SELECT 1 FROM main.", table, ")")) != 0;
    theirs = theirs || db.integer(cat("SELECT EXISTS(SELECT 1 FROM source.", table, ")")) != 0;
    equal = equal && less("main", "source") == 0 && less("source", "main") == 0;
  }
  if (!theirs || equal) return;
  if (ours) return add_conflict(report, cat(tables.front(), ": rows of another run of ", command, " in ", input.string()));
  for (const char* table : tables) {
    const std::string columns = joined(columns_of(db, table), "");
    db.exec(cat("INSERT INTO main.", table, "(", columns, ") SELECT ", columns, " FROM source.", table));
  }
}

/// Byte ledgers and their sums. The ledger of one model, recipe and context is one thing: none is put together from two inputs.
void copy_ledgers(Database& db, const std::filesystem::path& input, MergeReport& report) {
  for (const char* table : {"caches", "ledgers"})
    db.exec(cat("CREATE TEMP TABLE their_", table, " AS SELECT m2.id AS model, t2.id AS method, ", joined(without(columns_of(db, table), {"model", "method"}), "x."), " FROM source.", table,
                " x JOIN source.models m ON m.id = x.model JOIN source.methods t ON t.id = x.method "
                "JOIN main.models m2 ON m2.identity = m.identity JOIN main.methods t2 ON t2.recipe = t.recipe"));
  db.exec("CREATE INDEX temp.their_places ON their_ledgers(model, method, context)");
  constexpr const char* kSame = "b.model = a.model AND b.method = a.method AND b.context = a.context";
  const std::string entries = joined(without(columns_of(db, "ledgers"), {"model", "method", "context"}), "b.");
  const auto part = [&](const char* table) { return cat("SELECT ", entries, " FROM ", table, " b WHERE ", kSame); };
  // Where one of the two keeps only the sum, there is nothing to compare.
  const auto lacks = [&](const char* one, const char* other) { return cat("EXISTS(", part(one), ") AND EXISTS(", part(other), " EXCEPT ", part(one), ")"); };
  {
    Statement s(db, cat("SELECT t.recipe, m.slug, a.context FROM main.caches a JOIN temp.their_caches b ON ", kSame, " JOIN main.models m ON m.id = a.model JOIN main.methods t ON t.id = a.method WHERE ",
                        differs(without(columns_of(db, "caches"), {"model", "method", "context"})), " OR (", lacks("main.ledgers", "temp.their_ledgers"), ") OR (",
                        lacks("temp.their_ledgers", "main.ledgers"), ") ORDER BY t.recipe, m.slug, a.context"));
    while (s.step()) add_conflict(report, cat("ledger of ", s.text(0), " on ", s.text(1), " at context ", s.integer(2), " has other bytes in ", input.string()));
  }
  db.exec(cat("INSERT INTO main.ledgers SELECT * FROM temp.their_ledgers a WHERE NOT EXISTS(SELECT 1 FROM main.ledgers b WHERE ", kSame, ");"
              "INSERT OR IGNORE INTO main.caches SELECT * FROM temp.their_caches; DROP TABLE temp.their_caches; DROP TABLE temp.their_ledgers"));
}

void copy_store(Database& db, const std::filesystem::path& input, MergeReport& report) {
  for (const char* table : {"models", "gpus", "methods", "workloads", "imported"}) copy_plain(db, table);
  copy_quality(db, input, report);
  copy_block(db, input, {"validation", "measurements"}, "validate", report);
  copy_block(db, input, {"claims"}, "claims", report);
  copy_ledgers(db, input, report);
  db.exec(
      "INSERT OR IGNORE INTO main.configurations(key, model, gpu, method, weights, engine, tp, plan, provenance, canonical) "
      "SELECT c.key, m2.id, g2.id, t2.id, c.weights, c.engine, c.tp, c.plan, c.provenance, c.canonical FROM source.configurations c "
      "JOIN source.models m ON m.id = c.model JOIN source.gpus g ON g.id = c.gpu JOIN source.methods t ON t.id = c.method "
      "JOIN main.models m2 ON m2.identity = m.identity JOIN main.gpus g2 ON g2.identity = g.identity JOIN main.methods t2 ON t2.recipe = t.recipe");
  db.exec(
      "CREATE TEMP TABLE c_map(old INTEGER PRIMARY KEY, new INTEGER); CREATE TEMP TABLE w_map(old INTEGER PRIMARY KEY, new INTEGER);"
      "INSERT INTO c_map SELECT s.id, m.id FROM source.configurations s JOIN main.configurations m ON m.key = s.key;"
      "INSERT INTO w_map SELECT s.id, m.id FROM source.workloads s JOIN main.workloads m ON m.key = s.key");
  const std::vector<std::string> figures = figure_columns();
  db.exec(cat("INSERT INTO main.predictions(key, configuration, ", joined(figures, ""), ") SELECT p.key, c_map.new, ", joined(figures, "p."),
              " FROM source.predictions p JOIN c_map ON c_map.old = p.configuration"));
  const std::vector<std::string> served = workload_figure_columns();
  {
    Statement s(db, cat("SELECT hex(a.key) FROM main.workload_predictions a JOIN source.workload_predictions b ON a.key = b.key WHERE ", differs(served)));
    while (s.step()) add_conflict(report, cat("workload point ", s.text(0), " has other figures in ", input.string()));
  }
  db.exec(cat("INSERT OR IGNORE INTO main.workload_predictions(key, configuration, workload, ", joined(served, ""), ") SELECT p.key, c_map.new, w_map.new, ",
              joined(served, "p."), " FROM source.workload_predictions p JOIN c_map ON c_map.old = p.configuration JOIN w_map ON w_map.old = p.workload"));
  db.exec(
      "INSERT OR IGNORE INTO main.infeasible SELECT c_map.new, i.context, i.sentence FROM source.infeasible i JOIN c_map ON c_map.old = i.configuration;"
      "INSERT INTO main.runs(code_version, spec_hash, shard, state, points, infeasible, spec) "
      "SELECT code_version, spec_hash, shard, state, points, infeasible, spec FROM source.runs WHERE true "
      "ON CONFLICT(spec_hash, shard) DO UPDATE SET state = excluded.state, points = excluded.points, infeasible = excluded.infeasible "
      "WHERE excluded.points > main.runs.points OR (excluded.points = main.runs.points AND excluded.state = 'complete');"
      "DROP TABLE c_map; DROP TABLE w_map");
}

/// The last row that an input brought, and the input.
using LastRow = std::pair<std::int64_t, std::filesystem::path>;

/// Finds keys that came twice, counts those whose figures differ, keeps the row that came first.
void settle_twins(Database& db, const std::vector<LastRow>& ends, MergeReport& report) {
  const auto input_of = [&](std::int64_t id) {
    return std::find_if(ends.begin(), ends.end(), [&](const LastRow& end) { return id <= end.first; })->second.string();
  };
  if (db.integer("SELECT count(*) - count(DISTINCT key) FROM predictions") == 0) return;
  db.exec("CREATE INDEX predictions_probe ON predictions(key)");
  {
    Statement s(db, cat("SELECT c.canonical, a.context, a.batch, a.step_s, b.step_s, a.id, b.id FROM predictions a JOIN predictions b ON a.key = b.key AND a.id < b.id "
                        "JOIN configurations c ON c.id = a.configuration WHERE ", differs(figure_columns()), " ORDER BY a.key"));
    while (s.step())
      add_conflict(report, cat(s.text(0), " at context ", s.integer(1), ", batch ", s.integer(2), ": step ", s.number(3), " s in ", input_of(s.integer(5)), " and ", s.number(4), " s in ", input_of(s.integer(6))));
  }
  db.exec("DELETE FROM predictions WHERE id IN (SELECT b.id FROM predictions a JOIN predictions b ON a.key = b.key AND a.id < b.id)");
  db.exec("DROP INDEX predictions_probe");
}

/// Folds the log of a killed writer into its file, so that nothing of it is left beside the file that replaces it.
void settle_log(const std::filesystem::path& path) {
  Database db(path, Database::Mode::write);
  require_schema(db);
  db.exec("PRAGMA wal_checkpoint(TRUNCATE)");
}

/// The file that stands for an input while it is copied: itself, or a migrated copy at `place` of a store that an older program wrote.
std::filesystem::path at_this_version(const std::filesystem::path& in, const std::filesystem::path& place) {
  {
    std::optional<Database> db;
    open_for_reading(db, in);
    if (db->integer("PRAGMA user_version") == kSchemaVersion) return in;
    const std::string name = place.string();
    Statement s(*db, "VACUUM INTO ?");
    s.bind(1, std::string_view(name)).run();
  }
  Database copy(place, Database::Mode::write);
  prepare_schema(copy);
  copy.exec("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=DELETE");
  return place;
}

}  // namespace

MergeReport merge_stores(const std::filesystem::path& out, const std::vector<std::filesystem::path>& inputs, bool force) {
  if (inputs.empty()) throw InvalidArgument("merge has no input, must have at least one store");
  std::error_code ignored;
  std::vector<std::filesystem::path> sources;
  if (std::filesystem::exists(out, ignored)) {
    settle_log(out);
    sources.push_back(out);
  }
  for (const std::filesystem::path& in : inputs)
    if (!std::filesystem::exists(out, ignored) || !std::filesystem::equivalent(in, out, ignored)) sources.push_back(in);
  std::optional<std::string> version;
  for (const std::filesystem::path& in : sources) {
    std::optional<Database> db;
    open_for_reading(db, in);
    const std::string found = code_version_of(*db);
    if (version && found != *version && !force)
      throw InvalidArgument(cat(in.string(), ": written by kvatlas ", found, ", ", sources.front().string(), " by ", *version, "; stores of two versions merge with --force only"));
    if (!version) version = found;
  }
  MergeReport report;
  std::filesystem::path part = out, migrated = out;
  part += ".merging";
  migrated += ".merging-older";
  const auto remove_part = [&] {
    for (const std::filesystem::path& file : {part, migrated})
      for (const char* suffix : {"", "-wal", "-journal", "-shm"}) std::filesystem::remove(file.string() + suffix, ignored);
  };
  remove_part();
  try {
    Database db(part, Database::Mode::create);
    prepare_schema(db);
    db.exec("PRAGMA synchronous=NORMAL; PRAGMA cache_size=-65536; PRAGMA temp_store=MEMORY");
    {
      Statement s(db, "UPDATE meta SET value = ? WHERE name = 'code_version'");
      s.bind(1, std::string_view(*version)).run();
    }
    std::vector<LastRow> ends;
    for (const std::filesystem::path& in : sources) {
      {
        const std::string name = at_this_version(in, migrated).string();
        Statement s(db, "ATTACH ? AS source");
        s.bind(1, std::string_view(name)).run();
      }
      {
        Transaction t(db);
        copy_store(db, in, report);
        t.commit();
      }
      ends.emplace_back(db.integer("SELECT coalesce(max(id), 0) FROM predictions"), in);
      db.exec("DETACH source");
      std::filesystem::remove(migrated, ignored);
    }
    {
      Transaction t(db);
      settle_twins(db, ends, report);
      t.commit();
    }
    report.written = report.conflicts == 0 || force;
    if (report.written) {
      build_index(db);
      db.exec("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=DELETE");  // as a sweep leaves its store
    }
    report.rows = db.integer("SELECT (SELECT count(*) FROM predictions) + (SELECT count(*) FROM workload_predictions)");
  } catch (...) {
    remove_part();
    throw;
  }
  if (report.written) {
    std::error_code error;
    std::filesystem::rename(part, out, error);
    if (error) {
      remove_part();
      throw IoError(cat(out.string(), ": the merged store cannot be put in place (", error.message(), ")"));
    }
  }
  remove_part();
  return report;
}

}  // namespace kvatlas::sweep
