#include "models/evaluation/lockstep.hpp"

#include <algorithm>
#include <cmath>

#include "core/errors.hpp"
#include "core/parallel.hpp"

namespace kvatlas::models {

Lockstep::Lockstep(const Transformer& transformer, CacheShape shape, const std::vector<Candidate>& candidates)
    : transformer_(transformer), shape_(std::move(shape)), sequences_(candidates.size() + 1) {
  sequences_[0].attention = std::make_unique<PlainAttention>(shape_);
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    Sequence& s = sequences_[i + 1];
    s.difference.resize(static_cast<std::size_t>(transformer.layers()));
    s.norm.resize(s.difference.size());
    try {
      auto attention = std::make_unique<MethodAttention>(candidates[i].open());
      s.cache = &attention->cache();
      s.attention = std::move(attention);
    } catch (const Error& e) {
      s.failure = e.what();
    }
  }
}

void Lockstep::for_each(const std::function<void(std::size_t)>& body) {
  body(0);  // alone, so that threads share its heads; and others compare themselves with it
  parallel_for(static_cast<std::int64_t>(sequences_.size()) - 1, [&](std::int64_t i) {
    Sequence& s = sequences_[static_cast<std::size_t>(i) + 1];
    if (s.failure) return;
    try {
      body(static_cast<std::size_t>(i) + 1);
    } catch (const Error& e) {
      s.failure = e.what();
    }
  });
}

void Lockstep::fail(std::size_t sequence, const std::string& why) {
  KV_ASSERT(sequence > 0, "the plain sequence never fails");
  if (!sequences_[sequence].failure) sequences_[sequence].failure = why;
}

void Lockstep::prefill(std::span<const TokenId> tokens) {
  KV_ASSERT(position_ == 0, "a prompt starts a text");
  const auto n = static_cast<std::int64_t>(tokens.size());
  Array x = transformer_.embed(tokens);
  std::vector<std::optional<Array>> own(sequences_.size());  // the residual stream of a method whose attention differed
  for (int l = 0; l < transformer_.layers(); ++l) {
    const AttentionInputs shared = transformer_.attention_inputs(l, x.view());
    Array plain;
    for_each([&](std::size_t i) {
      const Segment segment{.attention = sequences_[i].attention.get(), .tokens = n, .first_position = 0};
      const std::span<const Segment> batch(&segment, 1);
      if (i == 0) {
        plain = transformer_.attend(l, shared, batch);
      } else if (own[i]) {
        const Array attended = transformer_.attend(l, transformer_.attention_inputs(l, own[i]->view()), batch);
        transformer_.finish_layer(l, attended.view(), own[i]->view());
      } else {
        const Array attended = transformer_.attend(l, shared, batch);
        if (attended.values() == plain.values()) return;
        own[i] = x;
        transformer_.finish_layer(l, attended.view(), own[i]->view());
      }
    });
    transformer_.finish_layer(l, plain.view(), x.view());
  }
  for_each([&](std::size_t i) {
    if (sequences_[i].cache != nullptr) sequences_[i].cache->end_prefill();
  });
  position_ = n;
}

Array Lockstep::step(std::span<const TokenId> tokens, bool compress) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  std::vector<TokenId> all;
  for (std::size_t i = 0; i < sequences_.size(); ++i) all.insert(all.end(), tokens.begin(), tokens.end());
  Array x = transformer_.embed(all);
  for (int l = 0; l < transformer_.layers(); ++l) {
    const AttentionInputs in = transformer_.attention_inputs(l, x.view());
    Array attended({x.view().dim(0), std::int64_t{transformer_.layer_class(l).q_heads} * transformer_.layer_class(l).v_dim});
    for_each([&](std::size_t i) {
      const std::int64_t row = static_cast<std::int64_t>(i) * n;
      const Segment segment{.attention = sequences_[i].attention.get(), .tokens = n, .first_position = position_};
      const View<float> to = attended.view().slice(0, row, n);
      transformer_.attend_segment(l, in, row, segment, to);
      if (i == 0) return;
      double difference = 0, norm = 0;
      for (std::int64_t t = 0; t < n; ++t)
        for (std::int64_t c = 0; c < to.dim(1); ++c) {
          const double plain = static_cast<double>(attended.view()(t, c)), d = static_cast<double>(to(t, c)) - plain;
          difference += d * d;
          norm += plain * plain;
        }
      sequences_[i].difference[static_cast<std::size_t>(l)] += difference;
      sequences_[i].norm[static_cast<std::size_t>(l)] += norm;
    });
    transformer_.finish_layer(l, attended.view(), x.view());
  }
  if (compress)
    for_each([&](std::size_t i) {
      if (sequences_[i].cache != nullptr) sequences_[i].cache->end_prefill();
    });
  position_ += n;
  Array states = transformer_.last_norm(x.view());
  for (std::size_t i = 1; i < sequences_.size(); ++i)
    if (sequences_[i].failure)
      std::fill_n(states.values().begin() + static_cast<std::ptrdiff_t>(i) * n * transformer_.hidden(), n * transformer_.hidden(), 0.0F);
  return states;
}

Ledger Lockstep::ledger(std::size_t sequence) const {
  KV_ASSERT(sequences_[sequence].cache != nullptr, "the ledger of a method");
  return count_ledger(sequences_[sequence].cache->buffers());
}

std::vector<double> Lockstep::attention_error(std::size_t sequence) const {
  const Sequence& s = sequences_[sequence];
  std::vector<double> error;
  for (std::size_t l = 0; l < s.norm.size(); ++l) error.push_back(s.norm[l] > 0 ? std::sqrt(s.difference[l] / s.norm[l]) : 0.0);
  return error;
}

}  // namespace kvatlas::models
