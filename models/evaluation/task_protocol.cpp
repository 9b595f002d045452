#include "models/evaluation/task_protocol.hpp"

#include <algorithm>
#include <utility>

#include "core/errors.hpp"
#include "models/evaluation/metrics.hpp"
#include "models/evaluation/tasks.hpp"

namespace kvatlas::models {

namespace {

/// Tokens fed one by one through compressed caches; where `way` is set, the prediction behind the token is scored.
struct Fed {
  TokenId token = 0;
  int way = -1;        // into kAsked
  TokenId target = 0;  // what should come next
};

struct Reading {
  std::vector<TokenId> prompt;
  std::vector<Fed> fed;
};

/// Appends question and answer: the last token of the question and all of the answer but its last predict the answer.
void ask(std::vector<Fed>& fed, const std::vector<TokenId>& question, const std::vector<TokenId>& answer, int way) {
  for (const TokenId t : question) fed.push_back({.token = t});
  for (const TokenId t : answer) {
    fed.back().way = way;
    fed.back().target = t;
    fed.push_back({.token = t});
  }
}

/// The last answer token predicts nothing that is scored.
void finish(std::vector<Fed>& fed) {
  while (!fed.empty() && fed.back().way < 0) fed.pop_back();
}

/// What one reading adds to a trial's figures, by sequence and way.
struct Outcome {
  double log_probability = 0;
  std::int64_t tokens = 0;
  bool exact = true;
};

void read(const Transformer& t, Lockstep& run, const Reading& reading, std::vector<std::array<Outcome, 3>>& outcomes) {
  run.prefill(reading.prompt);
  for (const Fed& f : reading.fed) {
    const Array states = run.step({&f.token, 1});
    if (f.way < 0) continue;
    Array logits({static_cast<std::int64_t>(run.sequences()), t.vocabulary()});
    t.logits(states.view(), logits.view());
    for (std::size_t i = 0; i < run.sequences(); ++i) {
      const std::span<const float> row = std::as_const(logits).view().row(static_cast<std::int64_t>(i));
      if (run.failure(i)) continue;
      if (!all_finite(row)) {
        if (i == 0) throw InvalidArgument(kPlainNotFinite);
        run.fail(i, cat("logits of an answer's token are not finite behind ", reading.prompt.size(), " tokens of prompt"));
        continue;
      }
      Outcome& o = outcomes[i][static_cast<std::size_t>(f.way)];
      o.log_probability -= negative_log_likelihood(row, f.target);
      o.tokens += 1;
      o.exact = o.exact && std::ranges::max_element(row) - row.begin() == f.target;
    }
  }
}

/// Bytes of filler that make about one token, from its first pages.
double bytes_of_a_token(const TaskOptions& o) {
  const std::string_view sample = std::string_view(o.filler).substr(0, 8192);
  return static_cast<double>(sample.size()) / static_cast<double>(std::max<std::size_t>(1, o.encode(sample).size()));
}

}  // namespace

std::vector<TaskResults> run_tasks(const Transformer& t, const CacheShape& shape, const std::vector<Candidate>& candidates, const TaskOptions& o) {
  std::vector<TaskResults> results(candidates.size() + 1);
  results[0].label = "full";
  for (std::size_t i = 0; i < candidates.size(); ++i) results[i + 1].label = candidates[i].label;
  const auto size = static_cast<std::int64_t>(bytes_of_a_token(o) * static_cast<double>(o.context));
  for (const std::string& task : o.tasks) {
    for (TaskResults& r : results) r.tasks.push_back({.task = task, .context = {}, .exact = {}, .log_probability = {}});
    for (int trial = 0; trial < o.trials; ++trial) {
      if (o.progress) o.progress(cat(task, " ", trial + 1, "/", o.trials));
      const TaskCase c = make_case(task, o.seed, static_cast<std::uint32_t>(trial), o.filler, size);
      std::vector<TokenId> context = o.encode(c.context);
      if (o.begin) context.insert(context.begin(), *o.begin);
      const std::vector<TokenId> question = o.encode(c.question), answer = o.encode(c.answer);
      if (question.empty() || answer.empty()) throw InvalidArgument(cat("question \"", c.question, "\" and its answer have ", question.size(), " and ", answer.size(), " tokens, must have at least 1"));
      const bool twice = !c.second_question.empty();

      Reading before{.prompt = context, .fed = {}}, after{.prompt = context, .fed = {}};
      before.prompt.insert(before.prompt.end(), question.begin(), question.end() - 1);  // its last token predicts the answer
      ask(before.fed, {question.back()}, answer, 0);
      if (twice) {
        for (const TokenId end : o.encode(kRecordEnd)) before.fed.push_back({.token = end});
        ask(before.fed, o.encode(c.second_question), o.encode(c.second_answer), 2);
      }
      finish(before.fed);
      ask(after.fed, question, answer, 1);
      finish(after.fed);

      std::vector<std::array<Outcome, 3>> outcomes(results.size());
      for (const Reading* reading : {&before, &after}) {
        Lockstep run(t, shape, candidates);
        read(t, run, *reading, outcomes);
        for (std::size_t i = 1; i < results.size(); ++i)
          if (run.failure(i)) results[i].failure = run.failure(i);
      }
      for (std::size_t i = 0; i < results.size(); ++i) {
        results[i].tasks.back().context.push_back(static_cast<std::int64_t>(context.size() + question.size()));
        for (std::size_t way = 0; way < kAsked.size() - (twice ? 0 : 1); ++way) {
          const Outcome& outcome = outcomes[i][way];
          results[i].tasks.back().exact[way].push_back(outcome.exact ? 1.0 : 0.0);
          results[i].tasks.back().log_probability[way].push_back(outcome.log_probability / static_cast<double>(std::max<std::int64_t>(1, outcome.tokens)));
        }
      }
    }
  }
  return results;
}

}  // namespace kvatlas::models
