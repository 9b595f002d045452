// Finds the lists of subtasks in a task tree (JSON) while a model writes it, token by token.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::methods::tim_parts {

/// Tokens [first, last) between the one that opens a list of subtasks and the one that closes it.
struct SubtaskList {
  std::int64_t first = 0, last = 0;
  friend bool operator==(const SubtaskList&, const SubtaskList&) = default;
};

class SubtaskReader {
 public:
  /// `first`: position of the first token that is read.
  explicit SubtaskReader(std::int64_t first) : token_(first) {}

  /// Takes the text of the next token; returns the lists that close in it and hold tokens, inner ones first. Text that is no JSON
  /// closes nothing that it did not open.
  std::vector<SubtaskList> read(std::string_view text);

  /// Lists of subtasks that are open.
  int depth() const;

 private:
  std::int64_t token_;
  std::vector<std::int64_t> open_;  // brackets and braces: the token of a list of subtasks, -1 for all others
  std::string string_;              // the last one, its name where a colon follows
  bool in_string_ = false, escaped_ = false, named_ = false;
};

}  // namespace kvatlas::methods::tim_parts
