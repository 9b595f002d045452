// Retrieval tasks made from a seed: what to remember, filler around it, and two questions whose answers are known.
//
// A record is `[key separator answer] `; a question repeats a record up to its answer and ends with a space, so a model that
// reads on writes the answer. The format is that of models/embedded/README.md, which the embedded model is trained on.
//   passkey       [pass key: 48213]  one record of five digits
//   multi_needle  [garden: 48213]    four words, five digits each
//   kv_lookup     [qzb: 4821]        keys of three letters fill 0.7 of the context, then filler
//   copy          [copy: qwhzk...]   one record of 16 to 32 letters
//   few_shot      [abc > cba]        eight examples of one rule (upper, reverse, double, next), then filler
// What an answer needs lies in the first 0.7 of the context.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::models {

struct TaskCase {
  std::string context;                         // filler and records, ends with a space
  std::string question, answer;                // the question ends with the space before the answer
  std::string second_question, second_answer;  // another record of the same context; empty for passkey and copy, which have one
};

/// What closes a record behind its answer.
inline constexpr std::string_view kRecordEnd = "] ";

std::span<const std::string_view> all_tasks();

/// Case number `trial` of a task, about `size` bytes of context and question.
/// filler   prose in UTF-8 to cut from, between characters; brackets in it become round ones
/// throws   InvalidArgument for an unknown task (with a suggestion), or a size too small for the task's records
TaskCase make_case(std::string_view task, std::uint64_t seed, std::uint32_t trial, std::string_view filler, std::int64_t size);

}  // namespace kvatlas::models
