// Checked access to the fields of a config: every field read is remembered, so that what nobody read can be reported.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::models {

/// What was read of a config, by full field names; shared by the objects nested in it.
struct ReadLog {
  std::set<std::string, std::less<>> read;
  std::set<std::string, std::less<>> opened;  // objects whose own fields are reported too
};

/// One JSON object of a config. A field that is absent or null counts as absent.
/// throws InvalidArgument naming field, value and what is allowed for a wrong type or range.
class Fields {
 public:
  /// `where` prefixes field names in messages, as in `rope_scaling.factor`; empty for the config itself.
  Fields(const nlohmann::json& object, ReadLog& log, std::string where = {});

  bool has(std::string_view field) const;
  /// The first of several spellings that is present; empty when none is.
  std::string_view present(std::initializer_list<std::string_view> spellings) const;

  std::optional<std::int64_t> integer(std::string_view field, std::int64_t min, std::int64_t max);
  std::optional<double> number(std::string_view field, double min, double max);
  std::optional<bool> boolean(std::string_view field);
  std::optional<std::string> text(std::string_view field);
  std::optional<std::vector<std::int64_t>> integers(std::string_view field, std::int64_t min, std::int64_t max);
  std::optional<std::vector<std::string>> texts(std::string_view field);
  /// The object under `field`; `unread` reports what it holds and nobody reads.
  std::optional<Fields> object(std::string_view field);

  /// An integer under the first spelling present; the first one is named when all are absent.
  std::int64_t required(std::initializer_list<std::string_view> spellings, std::int64_t min, std::int64_t max);
  std::optional<std::int64_t> any(std::initializer_list<std::string_view> spellings, std::int64_t min,
                                  std::int64_t max);

  /// Counts a field as read, with all that it holds.
  void ignore(std::string_view field);
  /// Full names of the fields that nobody read, nested ones behind their object, each object in alphabetical order.
  std::vector<std::string> unread() const;
  std::string full_name(std::string_view field) const;

 private:
  const nlohmann::json* find(std::string_view field);
  [[noreturn]] void wrong(std::string_view field, std::string_view allowed) const;

  const nlohmann::json* object_;
  ReadLog* log_;
  std::string where_;
};

}  // namespace kvatlas::models
