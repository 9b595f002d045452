// SQLite behind two owners, Database and Statement, whose errors are one sentence with the file's path in front.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "sweeps/hash128.hpp"

struct sqlite3;
struct sqlite3_stmt;

namespace kvatlas::sweep {

class Database;

/// A prepared statement. Text and blob views handed to bind must live until the next reset.
class Statement {
 public:
  Statement(Database& db, std::string_view sql);
  ~Statement();
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  // Parameters count from 1.
  Statement& bind(int at, std::int64_t value);
  Statement& bind(int at, int value) { return bind(at, static_cast<std::int64_t>(value)); }
  Statement& bind(int at, double value);  // not a number becomes NULL
  Statement& bind(int at, std::optional<double> value);
  Statement& bind(int at, std::string_view value);
  Statement& bind(int at, const char* value) { return bind(at, std::string_view(value)); }
  Statement& bind(int at, const Key& value);  // 16 bytes
  Statement& bind_null(int at);

  bool step();   // true while there is a row
  void run();    // to the end, then reset
  void reset();

  // Columns count from 0.
  int columns() const;
  std::string column_name(int at) const;
  bool is_null(int at) const;
  bool is_text(int at) const;
  bool is_integer(int at) const;
  std::int64_t integer(int at) const;
  double number(int at) const;
  std::optional<double> maybe_number(int at) const;
  std::string_view text(int at) const;  // valid until the next step
  Key key(int at) const;                // throws IoError unless 16 bytes

 private:
  Database* db_;
  sqlite3_stmt* statement_ = nullptr;
};

class Database {
 public:
  enum class Mode { read, write, create };  // create: also makes the file; write and create hold it alone

  /// throws IoError with one sentence when the file cannot be opened or is no SQLite file
  Database(const std::filesystem::path& path, Mode mode);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  void exec(const char* sql);
  void exec(const std::string& sql) { exec(sql.c_str()); }
  std::int64_t integer(std::string_view sql);  // first column of the first row; 0 without a row
  std::int64_t last_id() const;
  std::int64_t changes() const;
  const std::filesystem::path& path() const { return path_; }

  /// throws IoError for the error that SQLite reported last
  [[noreturn]] void fail(int code);

 private:
  friend class Statement;
  std::filesystem::path path_;
  sqlite3* handle_ = nullptr;
};

/// A transaction that is rolled back unless commit() was reached.
class Transaction {
 public:
  explicit Transaction(Database& db);
  ~Transaction();
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit();

 private:
  Database* db_;
};

}  // namespace kvatlas::sweep
