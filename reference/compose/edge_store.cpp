#include "reference/compose/edge_store.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas {

EdgeStore::EdgeStore(std::unique_ptr<SideStore> inner, int kv_heads, int dim, Side side, Dtype dtype, Tokens sinks, Tokens recent)
    : inner_(std::move(inner)), sinks_(plain_store(kv_heads, dim, side, dtype)), recent_(plain_store(kv_heads, dim, side, dtype)),
      kv_heads_(kv_heads), dim_(dim), side_(side), dtype_(dtype), max_sinks_(sinks), max_recent_(recent) {}

void EdgeStore::append(View<const float> rows) {
  const std::int64_t to_sinks = std::min(rows.dim(1), std::max<std::int64_t>(0, (max_sinks_ - sinks_->size()).value));
  if (to_sinks > 0) sinks_->append(rows.slice(1, 0, to_sinks));
  if (to_sinks < rows.dim(1)) recent_->append(rows.slice(1, to_sinks, rows.dim(1) - to_sinks));
}

void EdgeStore::settle(bool prompt_done) {
  const std::int64_t aged = (recent_->size() - max_recent_).value;
  if (aged > 0) {
    Array rows({kv_heads_, aged, dim_});
    for (int h = 0; h < kv_heads_; ++h) recent_->read(h, 0, rows.view()[h]);
    inner_->append(rows.view());
    recent_->drop_front(Tokens(aged));
  }
  inner_->settle(prompt_done);
}

Tokens EdgeStore::size() const { return sinks_->size() + inner_->size() + recent_->size(); }

void EdgeStore::read(int kv_head, std::int64_t first, View<float> out) const {
  std::int64_t done = 0;
  std::int64_t start = 0;
  for (const SideStore* part : {sinks_.get(), inner_.get(), recent_.get()}) {
    const std::int64_t size = part->size().value;
    const std::int64_t from = std::max(first + done, start), to = std::min(first + out.dim(0), start + size);
    if (from < to) {
      part->read(kv_head, from - start, out.slice(0, done, to - from));
      done += to - from;
    }
    start += size;
  }
}

void EdgeStore::check_crop(Tokens length) const {
  if (length < sinks_->size() + inner_->size() && inner_->size().value > 0)
    throw Unsupported(cat("crop to ", length.value, " tokens would cut into the ", inner_->size().value, " coded ones"));
}

void EdgeStore::crop(Tokens length) {
  check_crop(length);
  const Tokens before_recent = sinks_->size() + inner_->size();
  if (length < sinks_->size()) sinks_->crop(length);
  recent_->crop(std::max(Tokens(0), length - before_recent));
}

namespace {
/// Plain edges are their own ledger component: they are not the inner method's rows.
void add_edges(const SideStore& store, const std::string& prefix, std::vector<NamedBuffer>& out) {
  std::vector<NamedBuffer> rows;
  store.buffers(prefix, rows);
  for (NamedBuffer& b : rows) {
    b.component = "edge_rows";
    b.scope = Scope::sequence;
    out.push_back(std::move(b));
  }
}
}  // namespace

void EdgeStore::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  add_edges(*sinks_, prefix + "sink_", out);
  inner_->buffers(prefix, out);
  add_edges(*recent_, prefix + "recent_", out);
}

void EdgeStore::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  auto sinks = plain_store(kv_heads_, dim_, side_, dtype_), recent = plain_store(kv_heads_, dim_, side_, dtype_);
  sinks->load(prefix + "sink_", saved);
  recent->load(prefix + "recent_", saved);
  const auto refuse_beyond = [&](const char* what, Tokens rows, Tokens most) {
    if (rows > most) throw InvalidArgument(cat("buffers ", prefix, what, " hold ", rows.value, " rows, must hold at most ", most.value));
  };
  const bool open = sinks->size() < max_sinks_;  // then every token is a sink
  refuse_beyond("sink_rows", sinks->size(), max_sinks_);
  refuse_beyond("recent_rows", recent->size(), open ? Tokens(0) : max_recent_);
  std::vector<NamedBuffer> before;
  inner_->buffers(prefix, before);
  inner_->load(prefix, saved);  // refuses before it changes anything
  if (open && inner_->size().value > 0) {
    const Tokens rows = inner_->size();
    inner_->load(prefix, before);
    throw InvalidArgument(cat("buffers ", prefix, " hold ", rows.value, " coded rows behind ", sinks->size().value, " sinks, must hold none before there are ",
                              max_sinks_.value, " sinks"));
  }
  sinks_ = std::move(sinks);
  recent_ = std::move(recent);
}

}  // namespace kvatlas
