#include "reference/eviction/tim_subtask_prune/subtasks.hpp"

#include <algorithm>

namespace kvatlas::methods::tim_parts {

std::vector<SubtaskList> SubtaskReader::read(std::string_view text) {
  std::vector<SubtaskList> closed;
  for (const char ch : text) {
    if (in_string_) {
      if (!escaped_ && ch == '"') in_string_ = false;
      else string_ += ch;
      escaped_ = !escaped_ && ch == '\\';
      continue;
    }
    switch (ch) {
      case '"':
        in_string_ = true;
        string_.clear();
        named_ = false;
        break;
      case ':': named_ = true; break;
      case '[':
      case '{':
        open_.push_back(ch == '[' && named_ && string_ == "subtasks" ? token_ : -1);
        named_ = false;
        break;
      case ']':
      case '}':
        if (open_.empty()) break;
        if (open_.back() >= 0 && open_.back() + 1 < token_) closed.push_back({open_.back() + 1, token_});
        open_.pop_back();
        named_ = false;
        break;
      case ',': named_ = false; break;
      default: break;
    }
  }
  ++token_;
  return closed;
}

int SubtaskReader::depth() const {
  return static_cast<int>(std::ranges::count_if(open_, [](std::int64_t token) { return token >= 0; }));
}

}  // namespace kvatlas::methods::tim_parts
