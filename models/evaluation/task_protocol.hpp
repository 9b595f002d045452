// Retrieval tasks through compressed caches. Each case is asked three ways:
//   before  the question is part of the prompt that is compressed: a method may look at it
//   after   the prompt is compressed first, then the question comes
//   second  a question about another record on the cache of `before`; not for tasks of one record, whose answer was just read
// Every token of an answer is predicted through the compressed cache; the right answer is fed whatever the method would have said,
// which finds the same exact matches as greedy decoding would.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/evaluation/lockstep.hpp"

namespace kvatlas::models {

struct TaskOptions {
  std::vector<std::string> tasks;
  std::int64_t context = 1024;  // tokens of context and question, nearly
  int trials = 20;
  std::uint64_t seed = 0;
  std::string filler;
  std::optional<TokenId> begin{};
  std::function<std::vector<TokenId>(std::string_view)> encode;  // of a piece, without begin or end tokens
  std::function<void(const std::string&)> progress{};
};

inline constexpr std::array<const char*, 3> kAsked{"before", "after", "second"};

struct TaskResult {
  std::string task;
  std::vector<std::int64_t> context;  // tokens of context and question, one value a trial
  /// By way of asking, one value a trial, none where it is not asked: 1 where every token of the answer would have been chosen; mean log probability of a token.
  std::array<std::vector<double>, 3> exact, log_probability;
};

struct TaskResults {
  std::string label;
  std::optional<std::string> failure;
  std::vector<TaskResult> tasks;
};

/// The first of the results is `full`.
/// throws   InvalidArgument where the model's own logits are not finite; a method whose logits are not is a failure of that method
std::vector<TaskResults> run_tasks(const Transformer& transformer, const CacheShape& shape, const std::vector<Candidate>& candidates,
                                   const TaskOptions& options);

}  // namespace kvatlas::models
