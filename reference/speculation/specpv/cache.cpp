#include "reference/speculation/specpv/cache.hpp"

#include <algorithm>
#include <cstring>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/parallel.hpp"

namespace kvatlas::partial_verify {

namespace {

/// What SlotBytes::buffers() copies for every head.
NamedBuffer like(std::string_view component, Side side, Scope scope) {
  return {.name = {}, .component = component, .side = side, .scope = scope, .bytes = {}};
}

std::string prefix(int layer) { return cat("layer", layer, "/"); }

}  // namespace

float block_score(Score score, std::span<const float> q, std::span<const float> high, std::span<const float> low) {
  if (score == Score::code) return num::max(num::qk_dot(q, high), num::qk_dot(q, low));
  std::vector<float> larger(q.size());
  for (std::size_t c = 0; c < larger.size(); ++c) larger[c] = num::max(q[c] * high[c], q[c] * low[c]);
  return num::lane_sum(larger);
}

Cache::Cache(CacheShape shape, const Layout& layout) : shape_(std::move(shape)), layout_(layout), rotary_(shape_) {
  const std::int64_t width = bytes_of(shape_.dtype);
  for (const LayerClass& c : shape_.classes)
    for (const int l : c.layers) {
      layers_.push_back({.index = l, .c = &c, .rows = TokenRows(c.kv_heads, c.k_dim, c.v_dim, shape_.dtype),
                         .k_max = SlotBytes(c.kv_heads, c.k_dim * width), .k_min = SlotBytes(c.kv_heads, c.k_dim * width),
                         .part_k = SlotBytes(c.kv_heads, c.k_dim * width), .part_v = SlotBytes(c.kv_heads, c.v_dim * width)});
      if (!layout_.partial) continue;
      for (int h = 0; h < c.kv_heads; ++h)
        for (std::int64_t r = 0; r < layout_.rows(); ++r) {
          layers_.back().part_k.grow(h);
          layers_.back().part_v.grow(h);
        }
    }
}

Cache::Layer& Cache::at(int layer) {
  for (Layer& l : layers_)
    if (l.index == layer) return l;
  throw InvalidArgument(cat("layer is ", layer, ", must be a layer that caches rows"));
}

std::int64_t Cache::full_tokens() const { return layers_.front().rows.count(0); }

void Cache::begin(Verify how, std::int64_t missing) {
  KV_ASSERT(how_ == Verify::append, "accept() ended the last step");
  KV_ASSERT(how != Verify::partial || (refreshed() && buffered_ <= layout_.buffer), "a partial step has a partial cache with room");
  how_ = how;
  missing_ = missing;
  base_ = full_tokens();
}

void Cache::forward(int layer, const StepInput& step, View<float> out) {
  const PreparedStep p = prepare_step(shape_, rotary_, layer, step, out);
  Layer& l = at(layer);
  if (how_ == Verify::append) {
    if (verified() > full_tokens())
      throw Unsupported(cat(verified() - full_tokens(), " tokens have no full rows yet; a full verification must come before plain steps"));
    if (refreshed()) {  // the window would no longer be the newest tokens
      refreshed_ = buffered_ = 0;
      zero_partial(0);
    }
    attend_full(l, p, step, out);
    return;
  }
  if (p.n <= missing_ || p.n - missing_ > layout_.tree + 1)
    throw InvalidArgument(cat("step has ", p.n, " tokens, must have ", missing_ + 1, " to ", missing_ + layout_.tree + 1));
  if (how_ == Verify::partial) {
    attend_partial(l, p, step, out);
    return;
  }
  attend_full(l, p, step, out);
  if (how_ == Verify::refresh) refresh(l, p);
}

void Cache::attend_full(Layer& l, const PreparedStep& p, const StepInput& step, View<float> out) {
  l.rows.append(p.k.view(), p.v.view());
  parallel_for(l.c->kv_heads, [&](std::int64_t h) {
    const int head = static_cast<int>(h);
    const Array k = l.rows.keys(head), v = l.rows.values(head);
    attend_new(*l.c, head, p.q.view(), k.view(), v.view(), step.mask, step.sinks, out);
  });
}

void Cache::put_partial(Layer& l, int head, std::int64_t slot, std::span<const float> k, std::span<const float> v) const {
  num::store(shape_.dtype, k, l.part_k.at(head, slot));
  num::store(shape_.dtype, v, l.part_v.at(head, slot));
}

void Cache::attend_partial(Layer& l, const PreparedStep& p, const StepInput& step, View<float> out) {
  const std::int64_t first = layout_.fixed() + buffered_, rows = first + p.n;
  parallel_for(l.c->kv_heads, [&](std::int64_t h) {
    const int head = static_cast<int>(h);
    for (std::int64_t i = 0; i < p.n; ++i) put_partial(l, head, first + i, p.k.view().row(h, i), p.v.view().row(h, i));
    Array k({rows, l.c->k_dim}), v({rows, l.c->v_dim});
    for (std::int64_t r = 0; r < rows; ++r) {
      num::load(shape_.dtype, l.part_k.at(head, r), k.view().row(r));
      num::load(shape_.dtype, l.part_v.at(head, r), v.view().row(r));
    }
    attend_new(*l.c, head, p.q.view(), k.view(), v.view(), step.mask, step.sinks, out);
  });
}

/// Score of every block for one kv head: the mean over the step's tree queries (in order), then over the group's heads.
std::vector<float> Cache::block_scores(const Layer& l, int head, const PreparedStep& p, std::int64_t blocks) const {
  std::vector<float> scores, high(static_cast<std::size_t>(l.c->k_dim)), low(high.size());
  for (std::int64_t b = 0; b < blocks; ++b) {
    num::load(shape_.dtype, l.k_max.at(head, b), high);
    num::load(shape_.dtype, l.k_min.at(head, b), low);
    float over_heads = 0;
    for (int g = 0; g < l.c->q_per_kv(); ++g) {
      float over_queries = 0;
      for (std::int64_t i = missing_; i < p.n; ++i)
        over_queries += block_score(layout_.score, p.q.view().row(head * l.c->q_per_kv() + g, i), high, low);
      over_heads += over_queries / static_cast<float>(p.n - missing_);
    }
    scores.push_back(over_heads / static_cast<float>(l.c->q_per_kv()));
  }
  return scores;
}

void Cache::refresh(Layer& l, const PreparedStep& p) const {
  const std::int64_t text = base_ + missing_, blocks = layout_.blocks(text);
  parallel_for(l.c->kv_heads, [&](std::int64_t h) {
    const int head = static_cast<int>(h);
    const Array k = l.rows.keys(head), v = l.rows.values(head);
    for (std::int64_t b = l.k_max.count(head); b < blocks; ++b) {
      const std::int64_t first = layout_.sinks + b * layout_.block;
      const auto row = k.view().row(first);
      std::vector<float> high(row.begin(), row.end()), low = high;
      for (std::int64_t t = first + 1; t < first + layout_.block; ++t)
        for (std::size_t c = 0; c < high.size(); ++c) {
          const float x = k.view().row(t)[c];
          high[c] = num::max(high[c], x);
          low[c] = num::min(low[c], x);
        }
      num::store(shape_.dtype, high, l.k_max.grow(head));
      num::store(shape_.dtype, low, l.k_min.grow(head));
    }
    std::int64_t slot = 0;
    const auto copy = [&](std::int64_t first, std::int64_t count) {
      for (std::int64_t t = first; t < first + count; ++t) put_partial(l, head, slot++, k.view().row(t), v.view().row(t));
    };
    copy(0, layout_.sinks);
    for (const std::int64_t b : top_k(block_scores(l, head, p, blocks), layout_.retrieved_blocks))
      copy(layout_.sinks + b * layout_.block, layout_.block);
    copy(text - layout_.window, layout_.window);
    copy(text, p.n - missing_);  // the tree
    // What an older buffer left behind goes.
    for (; slot < layout_.rows(); ++slot) {
      std::ranges::fill(l.part_k.at(head, slot), std::byte{0});
      std::ranges::fill(l.part_v.at(head, slot), std::byte{0});
    }
  });
}

void Cache::zero_partial(std::int64_t from) {
  if (!layout_.partial) return;
  for (Layer& l : layers_)
    for (int h = 0; h < l.c->kv_heads; ++h)
      for (std::int64_t slot = from; slot < layout_.rows(); ++slot) {
        std::ranges::fill(l.part_k.at(h, slot), std::byte{0});
        std::ranges::fill(l.part_v.at(h, slot), std::byte{0});
      }
}

void Cache::accept(std::span<const std::int64_t> kept) {
  if (how_ == Verify::full || how_ == Verify::refresh) {
    Slots slots(static_cast<std::size_t>(base_ + missing_));
    for (std::size_t s = 0; s < slots.size(); ++s) slots[s] = static_cast<std::int64_t>(s);
    for (const std::int64_t k : kept) slots.push_back(base_ + missing_ + k);
    for (Layer& l : layers_)
      for (int h = 0; h < l.c->kv_heads; ++h) l.rows.keep(h, slots);
  }
  if (how_ == Verify::refresh) {
    refreshed_ = base_ + missing_;
    buffered_ = 0;
  }
  if (how_ == Verify::partial || how_ == Verify::refresh) {
    const std::int64_t first = layout_.fixed() + buffered_;
    for (Layer& l : layers_)
      for (int h = 0; h < l.c->kv_heads; ++h)
        for (std::size_t i = 0; i < kept.size(); ++i) {  // ascending, so nothing is overwritten before it moves
          const std::int64_t to = first + static_cast<std::int64_t>(i);
          if (first + kept[i] == to) continue;
          std::ranges::copy(l.part_k.at(h, first + kept[i]), l.part_k.at(h, to).begin());
          std::ranges::copy(l.part_v.at(h, first + kept[i]), l.part_v.at(h, to).begin());
        }
    buffered_ += static_cast<std::int64_t>(kept.size());
    zero_partial(layout_.fixed() + buffered_);
  }
  how_ = Verify::append;
}

void Cache::trim_summaries() {
  const std::int64_t blocks = std::max<std::int64_t>(0, (full_tokens() - layout_.sinks) / layout_.block);
  for (Layer& l : layers_)
    for (int h = 0; h < l.c->kv_heads; ++h)
      if (l.k_max.count(h) > blocks) {
        l.k_max.truncate(h, blocks);
        l.k_min.truncate(h, blocks);
      }
}

void Cache::abandon() {
  if (how_ == Verify::append) return;
  for (Layer& l : layers_)
    for (int h = 0; h < l.c->kv_heads; ++h)
      if (l.rows.count(h) > base_) l.rows.truncate(h, base_);
  if (how_ == Verify::refresh) {  // some layers may hold the new selection, others the old one
    refreshed_ = buffered_ = 0;
    zero_partial(0);
    trim_summaries();
  } else if (how_ == Verify::partial) {
    zero_partial(layout_.fixed() + buffered_);
  }
  how_ = Verify::append;
}

void Cache::check_crop(Tokens length) const {
  if (length.value < 0) throw InvalidArgument(cat("length is ", length.value, ", must be >= 0"));
  const std::int64_t last_refresh = how_ == Verify::refresh ? base_ + missing_ : refreshed_;
  if (length.value < last_refresh)
    throw Unsupported(cat("crop to ", length.value, ": the partial cache was made at ", last_refresh, " tokens, and the one before it is gone"));
}

void Cache::crop(Tokens length) {
  check_crop(length);
  if (how_ != Verify::append) accept({});
  if (refreshed() && length.value < refreshed_ + buffered_) {
    buffered_ = length.value - refreshed_;
    zero_partial(layout_.fixed() + buffered_);
  }
  for (Layer& l : layers_)
    for (int h = 0; h < l.c->kv_heads; ++h)
      if (l.rows.count(h) > length.value) l.rows.truncate(h, length.value);
  trim_summaries();
}

std::vector<NamedBuffer> Cache::buffers() const {
  std::vector<NamedBuffer> out;
  for (const Layer& l : layers_) {
    l.rows.buffers(prefix(l.index), out);
    if (!layout_.partial) continue;
    l.k_max.buffers(prefix(l.index) + "k_max", like("summaries", Side::key, Scope::group), out);
    l.k_min.buffers(prefix(l.index) + "k_min", like("summaries", Side::key, Scope::group), out);
    l.part_k.buffers(prefix(l.index) + "k_partial", like("partial", Side::key, Scope::sequence), out);
    l.part_v.buffers(prefix(l.index) + "v_partial", like("partial", Side::value, Scope::sequence), out);
  }
  if (layout_.partial) {
    NamedBuffer state{.name = "state", .component = "state", .side = Side::both, .scope = Scope::sequence, .bytes = {}};
    state.bytes.resize(16);
    std::memcpy(state.bytes.data(), &refreshed_, 8);
    std::memcpy(state.bytes.data() + 8, &buffered_, 8);
    out.push_back(std::move(state));
  }
  return out;
}

void Cache::load(std::span<const NamedBuffer> saved) {
  std::vector<Layer> loaded = layers_;
  std::int64_t refreshed = 0, buffered = 0;
  for (Layer& l : loaded) {
    l.rows.load(prefix(l.index), saved);
    if (!layout_.partial) continue;
    l.k_max.load(prefix(l.index) + "k_max", saved);
    l.k_min.load(prefix(l.index) + "k_min", saved);
    l.part_k.load(prefix(l.index) + "k_partial", saved);
    l.part_v.load(prefix(l.index) + "v_partial", saved);
  }
  const std::int64_t rows = loaded.front().rows.count(0), blocks = layout_.partial ? loaded.front().k_max.count(0) : 0;
  for (const Layer& l : loaded)
    for (int h = 0; h < l.c->kv_heads; ++h) {
      if (l.rows.count(h) != rows)
        throw InvalidArgument(cat("buffer ", prefix(l.index), "k_rows/head", h, " holds ", l.rows.count(h), " rows, must hold as many as the first (", rows, ")"));
      if (!layout_.partial) continue;
      if (l.k_max.count(h) != blocks || l.k_min.count(h) != blocks)
        throw InvalidArgument(cat("summaries of ", prefix(l.index), "head", h, " hold ", l.k_max.count(h), " and ", l.k_min.count(h), " blocks, must hold as many as the first (", blocks, ")"));
      if (l.part_k.count(h) != layout_.rows() || l.part_v.count(h) != layout_.rows())
        throw InvalidArgument(cat("partial cache of ", prefix(l.index), "head", h, " has ", l.part_k.count(h), " rows, must have ", layout_.rows()));
    }
  if (layout_.partial) {
    const NamedBuffer& state = find_buffer(saved, "state");
    if (state.bytes.size() != 16) throw InvalidArgument(cat("buffer state has ", state.bytes.size(), " bytes, must have 16"));
    std::memcpy(&refreshed, state.bytes.data(), 8);
    std::memcpy(&buffered, state.bytes.data() + 8, 8);
    const bool empty = refreshed == 0 && buffered == 0;
    // A refresh leaves full rows up to its own step, and at most a buffer and a tree of tokens follow.
    const bool possible = refreshed > layout_.fixed() && refreshed <= rows && buffered >= 0 &&
                          buffered <= layout_.buffer + layout_.tree + 1 && rows - refreshed <= buffered &&
                          blocks == layout_.blocks(refreshed);
    if (!empty && !possible)
      throw InvalidArgument(cat("buffer state says ", buffered, " tokens behind a refresh at ", refreshed, ", which ", rows, " rows and ", blocks, " blocks cannot have"));
    if (blocks > 0 && layout_.sinks + blocks * layout_.block > rows)
      throw InvalidArgument(cat("summaries cover ", blocks, " blocks, must lie within ", rows, " rows"));
  }
  layers_ = std::move(loaded);
  refreshed_ = refreshed;
  buffered_ = buffered;
  how_ = Verify::append;
}

ContentCounts Cache::content_counts() const {
  ContentCounts counts;
  if (!layout_.partial) return counts;
  counts.add("missing", verified() - full_tokens());
  counts.add("blocks", layers_.front().k_max.count(0));
  return counts;
}

Tokens Cache::kept(int layer, int) const {
  for (const Layer& l : layers_)
    if (l.index == layer) return Tokens(refreshed_ > 0 ? verified() : l.rows.count(0));
  throw InvalidArgument(cat("layer is ", layer, ", must be a layer that caches rows"));
}

}  // namespace kvatlas::partial_verify
