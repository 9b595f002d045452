#include "models/evaluation/text_protocol.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "core/parallel.hpp"

namespace kvatlas::models {

namespace {

constexpr std::int64_t kTilePositions = 32;  // whose logits are held at once

/// States of the scored positions, sequence by sequence: [positions, hidden] each.
using States = std::vector<std::vector<float>>;

void append(States& states, const Array& step, std::int64_t tokens, std::int64_t first, std::int64_t hidden) {
  for (std::size_t i = 0; i < states.size(); ++i) {
    const auto from = step.values().begin() + (static_cast<std::ptrdiff_t>(i) * tokens + first) * hidden;
    states[i].insert(states[i].end(), from, from + (tokens - first) * hidden);
  }
}

void score(const Transformer& t, const States& states, std::span<const TokenId> targets, Lockstep& run, std::vector<TextResult>& results) {
  const auto n = static_cast<std::int64_t>(targets.size());
  const std::size_t before = results[0].scores.size();
  for (TextResult& r : results) r.scores.resize(before + targets.size());
  for (std::int64_t first = 0; first < n; first += kTilePositions) {
    const std::int64_t count = std::min(kTilePositions, n - first);
    const auto logits_of = [&](std::size_t i) {
      Array logits({count, t.vocabulary()});
      t.logits(View<const float>(states[i].data() + first * t.hidden(), {count, t.hidden()}), logits.view());
      return logits;
    };
    const Array full = logits_of(0);
    for (std::size_t i = 0; i < results.size(); ++i) {
      if (run.failure(i)) continue;
      const Array own = i == 0 ? full : logits_of(i);
      if (!all_finite(own.values())) {
        if (i == 0) throw InvalidArgument(kPlainNotFinite);
        run.fail(i, cat("logits of scored tokens ", first, " to ", first + count - 1, " are not finite"));
        continue;
      }
      parallel_for(count, [&](std::int64_t j) {
        results[i].scores[before + static_cast<std::size_t>(first + j)] =
            score_token(full.view().row(j), own.view().row(j), targets[static_cast<std::size_t>(first + j)]);
      });
    }
  }
}

/// Whether a cache made its first chunk smaller and holds all that came later whole: what it stores says that it compressed once.
bool compresses_once(std::int64_t stored_first, std::int64_t stored_all, std::int64_t dense_first, std::int64_t dense_all) {
  return stored_first < dense_first && stored_all - stored_first >= dense_all - dense_first;
}

}  // namespace

std::int64_t tokens_needed(const TextOptions& o) {
  return o.windows * (o.context + o.scored + 1 - (o.begin ? 1 : 0));
}

std::vector<TextResult> read_text(const Transformer& t, const CacheShape& shape, const std::vector<Candidate>& candidates,
                                  std::span<const TokenId> text, const TextOptions& o) {
  if (o.windows < 1 || o.context < 1 || o.scored < 1) throw InvalidArgument("windows, context and scored must be at least 1");
  if (const std::int64_t need = tokens_needed(o); static_cast<std::int64_t>(text.size()) < need)
    throw InvalidArgument(cat("the text has ", text.size(), " tokens, must have ", need, " for ", o.windows, " windows of ", o.context, " and ", o.scored, " scored"));
  if (o.protocol == Protocol::b && o.chunk >= o.context + o.scored)
    throw InvalidArgument(cat("chunk is ", o.chunk, ", must be below context and scored together (", o.context + o.scored, ") in protocol B"));
  std::vector<TextResult> results(candidates.size() + 1);
  results[0].label = "full";
  for (std::size_t i = 0; i < candidates.size(); ++i) results[i + 1].label = candidates[i].label;
  for (TextResult& r : results) r.attention_error.resize(static_cast<std::size_t>(t.layers()));

  const std::int64_t fresh = o.context + o.scored + 1 - (o.begin ? 1 : 0);
  for (std::int64_t w = 0; w < o.windows; ++w) {
    std::vector<TokenId> tokens;
    if (o.begin) tokens.push_back(*o.begin);
    const auto piece = text.subspan(static_cast<std::size_t>(w * fresh), static_cast<std::size_t>(fresh));
    tokens.insert(tokens.end(), piece.begin(), piece.end());
    const std::span<const TokenId> all = tokens;
    const auto say = [&](const std::string& what) {
      if (o.progress) o.progress(cat("window ", w + 1, "/", o.windows, ": ", what));
    };
    Lockstep run(t, shape, candidates);
    for (std::size_t i = 1; i < results.size(); ++i)
      if (results[i].failure) run.fail(i, *results[i].failure);
    States states(run.sequences());
    const auto note_bytes = [&](std::int64_t context) {
      for (std::size_t i = 0; i < results.size(); ++i) {
        const Bytes dense = dense_bytes(shape, Tokens(context));
        results[i].dense += dense;
        if (!run.failure(i)) results[i].stored += i == 0 ? dense : run.ledger(i).total();
      }
    };
    std::int64_t scored_from = 0;
    if (o.protocol == Protocol::a) {
      say(cat("prompt of ", o.context, " tokens"));
      run.prefill(all.first(static_cast<std::size_t>(o.context)));
      note_bytes(o.context);
      scored_from = o.context;
      for (std::int64_t i = 0; i < o.scored; ++i) {
        if (i % 16 == 0) say(cat("token ", i, "/", o.scored));
        append(states, run.step(all.subspan(static_cast<std::size_t>(o.context + i), 1)), 1, 0, t.hidden());
      }
    } else {
      const std::int64_t end = o.context + o.scored;
      scored_from = o.chunk;
      std::vector<std::int64_t> first_chunk(results.size());
      for (std::int64_t first = 0; first < end; first += o.chunk) {
        say(cat("token ", first, "/", end));
        const std::int64_t count = std::min(o.chunk, end - first);
        const Array step = run.step(all.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), true);
        if (first > 0) append(states, step, count, 0, t.hidden());
        for (std::size_t i = 1; i < results.size() && first == 0; ++i)
          if (!run.failure(i)) first_chunk[i] = run.ledger(i).total().value;
      }
      for (std::size_t i = 1; i < results.size(); ++i)
        if (!run.failure(i) && compresses_once(first_chunk[i], run.ledger(i).total().value, dense_bytes(shape, Tokens(o.chunk)).value, dense_bytes(shape, Tokens(end)).value))
          run.fail(i, "compresses only once, behind the first chunk: protocol B needs a method that compresses every chunk, use protocol A");
      note_bytes(end);
    }
    say("logits");
    score(t, states, all.subspan(static_cast<std::size_t>(scored_from) + 1), run, results);
    for (std::size_t i = 1; i < results.size(); ++i) {
      if (run.failure(i)) results[i].failure = run.failure(i);
      const std::vector<double> error = run.attention_error(i);
      for (std::size_t l = 0; l < error.size(); ++l) results[i].attention_error[l] += error[l] / static_cast<double>(o.windows);
    }
  }
  for (TextResult& r : results) {  // once, of the sums: a window's rest is not lost
    r.stored = Bytes(r.stored.value / o.windows);
    r.dense = Bytes(r.dense.value / o.windows);
  }
  return results;
}

}  // namespace kvatlas::models
