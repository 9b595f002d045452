#include "reference/primitives/record_store.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/kernels/transform.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas {

namespace {

std::int64_t bytes_of_parts(std::span<const RecordPart> parts) {
  std::int64_t bytes = 0;
  for (const RecordPart& p : parts) bytes += p.bytes;
  return bytes;
}

}  // namespace

std::int64_t RecordLayout::record_bytes() const { return bytes_of_parts({parts.data(), parts.size()}); }
std::int64_t RecordLayout::state_bytes() const { return bytes_of_parts({state.data(), state.size()}); }

Tokens RecordLayout::coded(Tokens rows) const {
  const std::int64_t behind = std::max<std::int64_t>(0, (rows - sinks).value);
  if (ageing == Ageing::at_once) return Tokens(behind);
  if (ageing == Ageing::flush) return Tokens(behind - behind % residual.value);
  const std::int64_t aged = std::max<std::int64_t>(0, behind - residual.value);
  return Tokens(aged - aged % block);
}

SideLayout RecordLayout::side(Tokens rows) const {
  if (ageing == Ageing::at_once) return {.format = format, .plain = std::min(sinks, rows)};
  return {.format = format, .plain = rows - coded(rows), .flush = ageing == Ageing::flush ? residual : Tokens(block)};
}

RecordStore::RecordStore(int kv_heads, int dim, Side side, Dtype dtype, RecordLayout layout, RecordCodec codec)
    : dim_(dim), side_(side), dtype_(dtype), layout_(std::move(layout)), codec_(std::move(codec)),
      record_bytes_(layout_.record_bytes()), state_(codec_.initial_state), started_(!codec_.start),
      heads_(static_cast<std::size_t>(kv_heads)) {
  KV_ASSERT(layout_.ageing != Ageing::at_once || layout_.block == 1, "rows that are coded as they come have records of their own");
  KV_ASSERT(layout_.ageing != Ageing::flush || (layout_.residual.value > 0 && layout_.residual.value % layout_.block == 0),
            "a flush fills whole records");
  KV_ASSERT(layout_.own_state == static_cast<bool>(codec_.start), "state that is a sequence's own comes from its first call");
  if (!started_) state_.resize(static_cast<std::size_t>(layout_.state_bytes()));
  KV_ASSERT(static_cast<std::int64_t>(state_.size()) == layout_.state_bytes(), "state has the bytes of its parts");
  if (layout_.sinks.value > 0) sinks_ = plain_store(kv_heads, dim, side, dtype, "sinks", Scope::sequence);
  if (layout_.ageing != Ageing::at_once) waiting_ = plain_store(kv_heads, dim, side, dtype, "residual", Scope::sequence);
}

void RecordStore::encode(View<const float> rows) {
  const std::int64_t count = rows.dim(1) / layout_.block;
  for (std::size_t h = 0; h < heads_.size(); ++h) {
    const std::size_t old = heads_[h].size();
    heads_[h].resize(old + static_cast<std::size_t>(count * record_bytes_));
    for (std::int64_t r = 0; r < count; ++r)
      codec_.encode({.kv_head = static_cast<int>(h), .state = state_},
                    rows[static_cast<std::int64_t>(h)].slice(0, r * layout_.block, layout_.block),
                    std::span(heads_[h]).subspan(old + static_cast<std::size_t>(r * record_bytes_), static_cast<std::size_t>(record_bytes_)));
  }
}

void RecordStore::append(View<const float> rows) {
  KV_ASSERT(rows.dim(2) == dim_, "rows have the width of their store");
  if (!started_ && size().value == 0) {
    codec_.start(rows, state_);
    started_ = true;
  }
  std::int64_t to_sinks = 0;
  if (sinks_) {
    to_sinks = std::min(rows.dim(1), (layout_.sinks - sinks_->size()).value);
    if (to_sinks > 0) sinks_->append(rows.slice(1, 0, to_sinks));
  }
  if (to_sinks == rows.dim(1)) return;
  const View<const float> others = rows.slice(1, to_sinks, rows.dim(1) - to_sinks);
  waiting_ ? waiting_->append(others) : encode(others);
}

void RecordStore::settle(bool prompt_done) {
  if (!waiting_ || !prompt_done) return;
  const std::int64_t aged = layout_.coded(size()).value - coded();
  if (aged <= 0) return;
  Array rows({static_cast<std::int64_t>(heads_.size()), aged, dim_});
  for (std::size_t h = 0; h < heads_.size(); ++h) waiting_->read(static_cast<int>(h), 0, rows.view()[static_cast<std::int64_t>(h)]);
  encode(rows.view());
  waiting_->drop_front(Tokens(aged));
}

Tokens RecordStore::size() const {
  return Tokens(coded()) + (sinks_ ? sinks_->size() : Tokens(0)) + (waiting_ ? waiting_->size() : Tokens(0));
}

void RecordStore::read(int kv_head, std::int64_t first, View<float> out) const {
  const std::int64_t end = first + out.dim(0), sinks = sinks_ ? sinks_->size().value : 0, behind = sinks + coded();
  if (first < sinks) sinks_->read(kv_head, first, out.slice(0, 0, std::min(end, sinks) - first));
  const auto& run = heads_[static_cast<std::size_t>(kv_head)];
  Array rows({layout_.block, dim_});
  for (std::int64_t r = std::max<std::int64_t>(0, first - sinks) / layout_.block; r < records() && sinks + r * layout_.block < end; ++r) {
    codec_.decode({.kv_head = kv_head, .state = state_},
                  std::span(run).subspan(static_cast<std::size_t>(r * record_bytes_), static_cast<std::size_t>(record_bytes_)), rows.view());
    for (std::int64_t i = 0; i < layout_.block; ++i) {
      const std::int64_t at = sinks + r * layout_.block + i;
      if (at < first || at >= end) continue;
      std::ranges::transform(rows.view().row(i), out.row(at - first).begin(), [this](float x) { return num::round_to(dtype_, x); });
    }
  }
  if (end > behind) {
    const std::int64_t from = std::max(first, behind);
    waiting_->read(kv_head, from - behind, out.slice(0, from - first, end - from));
  }
}

void RecordStore::drop_front(Tokens count) {
  if (sinks_ || waiting_) throw Unsupported("rows cannot be dropped from the front of a side whose rows wait or stay plain");
  for (auto& run : heads_) {
    run.erase(run.begin(), run.begin() + count.value * record_bytes_);
    run.shrink_to_fit();
  }
}

void RecordStore::check_crop(Tokens length) const {
  if (waiting_ && coded() > 0 && length < size() && layout_.coded(length).value != coded())
    throw Unsupported(cat("crop to ", length.value, " tokens would take back rows that are coded: ", coded(),
                          " are, at that length ", layout_.coded(length).value, " were"));
}

void RecordStore::crop(Tokens length) {
  check_crop(length);
  if (length >= size()) return;
  const std::int64_t sinks = sinks_ ? std::min(sinks_->size(), length).value : 0;
  if (waiting_) {
    waiting_->crop(Tokens(std::max<std::int64_t>(0, length.value - sinks - coded())));
  } else {
    for (auto& run : heads_) run.resize(static_cast<std::size_t>((length.value - sinks) * record_bytes_));
  }
  if (sinks_) sinks_->crop(Tokens(sinks));
}

void RecordStore::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  std::size_t offset = 0;
  for (const RecordPart& p : layout_.parts) {
    const auto bytes = static_cast<std::size_t>(p.bytes), stride = static_cast<std::size_t>(record_bytes_);
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      NamedBuffer b{.name = cat(prefix, p.component, "/head", h), .component = p.component, .side = side_, .scope = p.scope, .bytes = {}};
      b.bytes.reserve(static_cast<std::size_t>(records()) * bytes);
      for (std::size_t at = offset; at < heads_[h].size(); at += stride)
        b.bytes.insert(b.bytes.end(), heads_[h].begin() + static_cast<std::ptrdiff_t>(at), heads_[h].begin() + static_cast<std::ptrdiff_t>(at + bytes));
      out.push_back(std::move(b));
    }
    offset += bytes;
  }
  offset = 0;
  for (const RecordPart& p : layout_.state) {
    const auto from = state_.begin() + static_cast<std::ptrdiff_t>(offset);
    out.push_back({.name = cat(prefix, p.component), .component = p.component, .side = side_, .scope = p.scope,
                   .bytes = {from, from + static_cast<std::ptrdiff_t>(p.bytes)}});
    offset += static_cast<std::size_t>(p.bytes);
  }
  if (sinks_) sinks_->buffers(prefix, out);
  if (waiting_) waiting_->buffers(prefix, out);
}

void RecordStore::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  std::vector<std::vector<std::byte>> loaded(heads_.size());
  std::int64_t count = -1;
  std::size_t offset = 0;
  for (const RecordPart& p : layout_.parts) {
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      const NamedBuffer& b = find_buffer(saved, cat(prefix, p.component, "/head", h));
      const auto size = static_cast<std::int64_t>(b.bytes.size());
      if (count < 0 && size % p.bytes == 0) count = size / p.bytes;
      if (count < 0 || size != count * p.bytes)
        throw InvalidArgument(cat("buffer ", b.name, " has ", size, " bytes, must be whole records of ", p.bytes,
                                  " bytes, as many in every part and head"));
      loaded[h].resize(static_cast<std::size_t>(count * record_bytes_));
      for (std::int64_t r = 0; r < count; ++r)
        std::copy_n(b.bytes.begin() + r * p.bytes, p.bytes,
                    loaded[h].begin() + r * record_bytes_ + static_cast<std::ptrdiff_t>(offset));
    }
    offset += static_cast<std::size_t>(p.bytes);
  }
  std::vector<std::byte> state;
  for (const RecordPart& p : layout_.state) {
    const NamedBuffer& b = find_buffer(saved, cat(prefix, p.component));
    if (static_cast<std::int64_t>(b.bytes.size()) != p.bytes)
      throw InvalidArgument(cat("buffer ", b.name, " has ", b.bytes.size(), " bytes, must have ", p.bytes));
    state.insert(state.end(), b.bytes.begin(), b.bytes.end());
  }
  const auto fresh = [&](const char* component) { return plain_store(static_cast<int>(heads_.size()), dim_, side_, dtype_, component, Scope::sequence); };
  auto sinks = sinks_ ? fresh("sinks") : nullptr, waiting = waiting_ ? fresh("residual") : nullptr;
  if (sinks) {
    sinks->load(prefix, saved);
    if (sinks->size() > layout_.sinks)
      throw InvalidArgument(cat("buffer ", prefix, "sinks/head0 holds ", sinks->size().value, " rows, must hold at most ", layout_.sinks.value));
    if (sinks->size() < layout_.sinks && count > 0)
      throw InvalidArgument(cat("buffer ", prefix, "sinks/head0 holds ", sinks->size().value, " rows, must hold ", layout_.sinks.value,
                                " where rows are coded"));
  }
  if (waiting) waiting->load(prefix, saved);
  const bool started = !codec_.start || count > 0 || (waiting && waiting->size().value > 0) || (sinks && sinks->size().value > 0);
  if (codec_.state_fault && started)
    if (const auto fault = codec_.state_fault(state)) throw InvalidArgument(cat(prefix, "state: ", *fault));
  heads_ = std::move(loaded);
  state_ = std::move(state);
  sinks_ = std::move(sinks);
  waiting_ = std::move(waiting);
  started_ = started;
}

Ledger record_ledger(const CacheShape& shape, const History& h, const RecordLayoutOf& layout) {
  Ledger ledger;
  std::int64_t prefill = 0, beyond = 0;
  bool waits = false;
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    for (const Side side : {Side::key, Side::value}) {
      if (side == Side::value && c.kind == RowKind::latent) continue;
      const RecordLayout l = layout(c, side);
      const std::int64_t states = std::int64_t{c.count()} * (l.own_state ? h.sequences : 1);
      const int heads = l.joined ? 1 : c.kv_heads;  // rows of a token
      const std::int64_t runs = std::int64_t{c.count()} * heads * h.sequences;
      const std::int64_t row = std::int64_t{dim_of(c, side)} * (c.kv_heads / heads) * bytes_of(shape.dtype);
      const Tokens rows = c.visible(h.tokens());
      const std::int64_t records = l.coded(rows).value / l.block;
      for (const RecordPart& p : l.parts) ledger.add(p.component, side, p.scope, Bytes(records * p.bytes * runs));
      for (const RecordPart& p : l.state) ledger.add(p.component, side, p.scope, Bytes(p.bytes * states));
      const std::int64_t sinks = std::min(l.sinks, rows).value;
      if (l.sinks.value > 0) ledger.add("sinks", side, Scope::sequence, Bytes(sinks * row * runs));
      if (l.ageing != Ageing::at_once) {
        const std::int64_t waiting = rows.value - sinks - records * l.block;
        ledger.add("residual", side, Scope::sequence, Bytes(waiting * row * runs));
        waits = true;
        // Just before the last rows were coded one less than these were plain on top of those that wait today.
        const std::int64_t at_once = l.ageing == Ageing::flush ? l.residual.value : l.block;
        if (records > 0) beyond += std::max<std::int64_t>(0, (at_once - 1 - (l.ageing == Ageing::flush ? waiting : waiting - l.residual.value)) * row - at_once / l.block * l.record_bytes()) * runs;
      }
      // Before the prompt ends rows that wait are all plain.
      const Tokens prompt = c.visible(h.prompt);
      const std::int64_t coded = l.ageing == Ageing::at_once ? l.coded(prompt).value : 0;
      prefill += (coded * l.record_bytes() + (prompt.value - coded) * row) * runs + l.state_bytes() * states;
    }
  }
  if (waits) ledger.set_prefill(Bytes(prefill));
  if (beyond > 0) ledger.set_high_water(ledger.total() + Bytes(beyond));
  return ledger;
}

namespace {
SideLayoutOf side_of(const RecordLayoutOf& layout) {
  return [&layout](const LayerClass& c, Side side, Tokens rows) { return layout(c, side).side(rows); };
}
}  // namespace

Plan record_decode_plan(const CacheShape& shape, const History& h, const RecordLayoutOf& layout) {
  return side_decode_plan(shape, h, side_of(layout));
}

Plan record_prefill_plan(const CacheShape& shape, const History& h, const RecordLayoutOf& layout) {
  return side_prefill_plan(shape, h, side_of(layout));
}

std::unique_ptr<KvCache> side_cache(const CacheShape& shape, std::function<std::unique_ptr<SideStore>(const LayerClass&, int, Side)> make) {
  return std::make_unique<SideCache>(shape, std::move(make));
}

void add_rotation(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, std::int64_t heads, int width, int block) {
  plan.add(kernels::LowRank{.sequences = h.sequences, .rows = heads * width / block, .rank = block, .dim = block, .dtype = dtype, .keep = true}
               .call(c.count()));
}

}  // namespace kvatlas
