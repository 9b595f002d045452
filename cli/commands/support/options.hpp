// Options of a command as data: the same row gives the help text, the parser and the range check.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/commands/command.hpp"
#include "core/errors.hpp"
#include "core/units.hpp"

namespace kvatlas::cli {

/// The command line itself is wrong: unknown option, missing value, value out of range.
class UsageError : public InvalidArgument {
  using InvalidArgument::InvalidArgument;
};

struct Option {
  enum class Kind : std::uint8_t { flag, text, size, integer, number, choice, list };
  const char* name = "";
  Kind kind = Kind::flag;
  const char* value = "";           // what the help calls the value: "N", "FILE"
  const char* help = "";
  double min = 0, max = 0;          // size, integer, number
  const char* fallback = nullptr;   // default as the user would write it; nullptr: none
  std::vector<std::string_view> choices{};
  bool required = false;

  static Option flag(const char* name, const char* help) { return {.name = name, .kind = Kind::flag, .help = help}; }
  static Option text(const char* name, const char* value, const char* help, const char* fallback = nullptr) {
    return {.name = name, .kind = Kind::text, .value = value, .help = help, .fallback = fallback};
  }
  /// May be given several times.
  static Option list(const char* name, const char* value, const char* help) {
    return {.name = name, .kind = Kind::list, .value = value, .help = help};
  }
  static Option size(const char* name, double min, double max, const char* help, const char* fallback = nullptr) {
    return {.name = name, .kind = Kind::size, .value = "N", .help = help, .min = min, .max = max, .fallback = fallback};
  }
  static Option integer(const char* name, double min, double max, const char* help, const char* fallback = nullptr) {
    return {.name = name, .kind = Kind::integer, .value = "N", .help = help, .min = min, .max = max, .fallback = fallback};
  }
  static Option number(const char* name, double min, double max, const char* help, const char* fallback = nullptr) {
    return {.name = name, .kind = Kind::number, .value = "X", .help = help, .min = min, .max = max, .fallback = fallback};
  }
  static Option choice(const char* name, std::vector<std::string_view> choices, const char* help, const char* fallback = nullptr) {
    return {.name = name, .kind = Kind::choice, .value = "WORD", .help = help, .fallback = fallback, .choices = std::move(choices)};
  }
  Option needed() && { return required = true, std::move(*this); }
};

/// What a command accepts. --help and --json are part of every command.
struct Usage {
  const char* command;
  const char* positional;   // "METHOD", "OUT IN...", ""
  int least = 0, most = 0;  // positional arguments
  const char* example;
  std::vector<Option> options;
  const char* note = "";    // a paragraph behind the options
};

/// A command line after the door: every value present, in range, and of its kind.
class Parsed {
 public:
  /// Given, or set by its default.
  bool has(std::string_view name) const { return values_.contains(std::string(name)); }
  /// Written on the command line.
  bool given(std::string_view name) const { return given_.contains(std::string(name)); }
  bool json() const { return has("json"); }
  const std::vector<std::string>& positional() const { return positional_; }
  /// The text as written, or the default. Asking for an option without either is our own bug.
  const std::string& text(std::string_view name) const;
  std::vector<std::string> list(std::string_view name) const;
  std::int64_t integer(std::string_view name) const;  // sizes and integers
  Tokens tokens(std::string_view name) const { return Tokens(integer(name)); }
  double number(std::string_view name) const;

 private:
  friend std::optional<Parsed> parse(const Usage& usage, const Arguments& args, const Streams& io);
  std::map<std::string, std::vector<std::string>> values_;
  std::set<std::string> given_;
  std::vector<std::string> positional_;
};

/// Parses; prints the help and returns nothing when --help is given.
/// throws UsageError with one sentence
std::optional<Parsed> parse(const Usage& usage, const Arguments& args, const Streams& io);

/// The help text of a command.
std::string help_text(const Usage& usage);

/// Appends groups of options that several commands share.
std::vector<Option> join(std::initializer_list<std::vector<Option>> groups);

}  // namespace kvatlas::cli
