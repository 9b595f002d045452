#include "sweeps/database.hpp"

#include <fcntl.h>
#include <fmt/core.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cctype>
#include <cmath>
#include <system_error>

#include "core/errors.hpp"
#include "core/interruption.hpp"

namespace kvatlas::sweep {

namespace {

std::filesystem::path folder_of(const std::filesystem::path& path) { return path.has_parent_path() ? path.parent_path() : "."; }

bool may(const std::filesystem::path& path, int what) { return faccessat(AT_FDCWD, path.c_str(), what, AT_EACCESS) == 0; }

/// What SQLite opens. A reader of a store in WAL mode makes files beside it; where it may not and no log is waiting to be
/// read, the store is opened as a file that nobody changes. (Where a log waits, SQLite needs the folder.)
std::string name_for_reading(const std::filesystem::path& path) {
  std::error_code error;
  const auto log = std::filesystem::file_size(path.string() + "-wal", error);
  if (may(folder_of(path), W_OK) || (!error && log > 0)) return path.string();
  std::string uri = "file:";
  for (const char c : path.string()) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = std::isalnum(byte) != 0 || c == '/' || c == '.' || c == '-' || c == '_';
    uri += plain ? std::string(1, c) : fmt::format("%{:02X}", byte);
  }
  return uri + "?immutable=1";
}

/// SQLite asks between its steps: nonzero ends the statement.
int called_off(void*) {
  const std::atomic<bool>* flag = interruption_flag();
  return flag != nullptr && flag->load(std::memory_order_relaxed) ? 1 : 0;
}

std::string sentence(const std::filesystem::path& path, int code, const char* detail) {
  const std::string p = path.string();
  const int kind = code & 0xff;
  if (kind == SQLITE_IOERR || kind == SQLITE_CANTOPEN) {
    if (!may(path, R_OK)) return cat(p, ": the store cannot be read, the file refuses access");
    if (!may(folder_of(path), W_OK)) return cat(p, ": the store cannot be read, its folder refuses writing, which the log of an unfinished sweep needs");
  }
  switch (code & 0xff) {
    case SQLITE_NOTADB: return cat(p, ": not a kvatlas store, the file is no SQLite database");
    case SQLITE_CORRUPT: return cat(p, ": the store is damaged (", detail, "); sweep into a new file or restore a copy");
    case SQLITE_FULL: return cat(p, ": the disk is full; what was committed is kept, free space and run the same command again");
    case SQLITE_READONLY: return cat(p, ": the store cannot be written, file or folder is read-only");
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return cat(p, ": the store is in use by another process, wait until it ends");
    case SQLITE_IOERR: return cat(p, ": reading or writing the store failed (", detail, ")");
    default: return cat(p, ": ", detail);
  }
}

}  // namespace

Database::Database(const std::filesystem::path& path, Mode mode) : path_(path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw IoError(cat(path.string(), ": is a folder, must be a file"));
  if (mode != Mode::create && !std::filesystem::exists(path, ignored)) throw IoError(cat(path.string(), ": no such store"));
  const std::filesystem::path folder = folder_of(path);
  if (!std::filesystem::is_directory(folder, ignored)) throw IoError(cat(path.string(), ": the folder ", folder.string(), " does not exist"));
  const int flags = mode == Mode::read ? SQLITE_OPEN_READONLY
                    : mode == Mode::write ? SQLITE_OPEN_READWRITE
                                          : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
  const std::string name = mode == Mode::read ? name_for_reading(path) : path.string();
  const int uri = name != path.string() ? SQLITE_OPEN_URI : 0;  // otherwise a path is never taken for a URI
  const int code = sqlite3_open_v2(name.c_str(), &handle_, flags | uri | SQLITE_OPEN_NOMUTEX, nullptr);
  if (code != SQLITE_OK) {
    sqlite3_close(handle_);
    handle_ = nullptr;
    throw IoError(cat(path.string(), ": the store cannot be ", mode == Mode::create ? "created or opened" : "opened", ", file or folder refuses access"));
  }
  try {
    sqlite3_extended_result_codes(handle_, 1);
    sqlite3_progress_handler(handle_, 100'000, called_off, nullptr);
    sqlite3_busy_timeout(handle_, mode == Mode::read ? 2000 : 200);
    // One process writes a store. Held alone, a WAL needs no shared memory, so network folders without it serve too.
    if (mode != Mode::read) exec("PRAGMA locking_mode=EXCLUSIVE");
    exec("PRAGMA foreign_keys=ON");
  } catch (...) {
    sqlite3_close(handle_);
    throw;
  }
}

Database::~Database() { sqlite3_close(handle_); }

void Database::fail(int code) { throw IoError(sentence(path_, code, sqlite3_errmsg(handle_))); }

void Database::exec(const char* sql) {
  const int code = sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) fail(code);
}

std::int64_t Database::integer(std::string_view sql) {
  Statement s(*this, sql);
  return s.step() ? s.integer(0) : 0;
}

std::int64_t Database::last_id() const { return sqlite3_last_insert_rowid(handle_); }
std::int64_t Database::changes() const { return sqlite3_changes64(handle_); }

Statement::Statement(Database& db, std::string_view sql) : db_(&db) {
  const int code = sqlite3_prepare_v2(db.handle_, sql.data(), static_cast<int>(sql.size()), &statement_, nullptr);
  if (code != SQLITE_OK) db.fail(code);
}
Statement::~Statement() { sqlite3_finalize(statement_); }

Statement& Statement::bind(int at, std::int64_t value) {
  if (const int code = sqlite3_bind_int64(statement_, at, value); code != SQLITE_OK) db_->fail(code);
  return *this;
}
Statement& Statement::bind(int at, double value) {
  const int code = std::isnan(value) ? sqlite3_bind_null(statement_, at) : sqlite3_bind_double(statement_, at, value);
  if (code != SQLITE_OK) db_->fail(code);
  return *this;
}
Statement& Statement::bind(int at, std::optional<double> value) { return value ? bind(at, *value) : bind_null(at); }
Statement& Statement::bind(int at, std::string_view value) {
  const int code = sqlite3_bind_text(statement_, at, value.data(), static_cast<int>(value.size()), SQLITE_STATIC);
  if (code != SQLITE_OK) db_->fail(code);
  return *this;
}
Statement& Statement::bind(int at, const Key& value) {
  unsigned char bytes[16];
  to_bytes(value, bytes);
  if (const int code = sqlite3_bind_blob(statement_, at, bytes, 16, SQLITE_TRANSIENT); code != SQLITE_OK) db_->fail(code);
  return *this;
}
Statement& Statement::bind_null(int at) {
  if (const int code = sqlite3_bind_null(statement_, at); code != SQLITE_OK) db_->fail(code);
  return *this;
}

bool Statement::step() {
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  db_->fail(code);
}
void Statement::run() {
  while (step()) {
  }
  reset();
}
void Statement::reset() { sqlite3_reset(statement_); }

int Statement::columns() const { return sqlite3_column_count(statement_); }
std::string Statement::column_name(int at) const { return sqlite3_column_name(statement_, at); }
bool Statement::is_null(int at) const { return sqlite3_column_type(statement_, at) == SQLITE_NULL; }
bool Statement::is_text(int at) const { return sqlite3_column_type(statement_, at) == SQLITE_TEXT; }
bool Statement::is_integer(int at) const { return sqlite3_column_type(statement_, at) == SQLITE_INTEGER; }
std::int64_t Statement::integer(int at) const { return sqlite3_column_int64(statement_, at); }
double Statement::number(int at) const { return sqlite3_column_double(statement_, at); }
std::optional<double> Statement::maybe_number(int at) const {
  return is_null(at) ? std::nullopt : std::optional<double>(number(at));
}
std::string_view Statement::text(int at) const {
  const auto* p = reinterpret_cast<const char*>(sqlite3_column_text(statement_, at));
  return p == nullptr ? std::string_view() : std::string_view(p, static_cast<std::size_t>(sqlite3_column_bytes(statement_, at)));
}
Key Statement::key(int at) const {
  const auto* p = static_cast<const unsigned char*>(sqlite3_column_blob(statement_, at));
  if (p == nullptr || sqlite3_column_bytes(statement_, at) != 16)
    throw IoError(cat(db_->path().string(), ": the store is damaged (a key is not 16 bytes); sweep into a new file or restore a copy"));
  return from_bytes(p);
}

Transaction::Transaction(Database& db) : db_(&db) { db.exec("BEGIN IMMEDIATE"); }
Transaction::~Transaction() {
  if (db_ == nullptr) return;
  try {
    db_->exec("ROLLBACK");
  } catch (const IoError&) {  // SQLite rolled back by itself, as it does when the disk is full
  }
}
void Transaction::commit() {
  db_->exec("COMMIT");
  db_ = nullptr;
}

}  // namespace kvatlas::sweep
