#include "reference/primitives/residual_store.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas {

ResidualStore::ResidualStore(int kv_heads, int dim, Side side, Dtype dtype, std::unique_ptr<RowCoder> coder, ResidualPolicy policy)
    : kv_heads_(kv_heads), dim_(dim), side_(side), dtype_(dtype), policy_(std::move(policy)), coder_(std::move(coder)),
      sinks_(plain_sinks()), residual_(plain_residual()) {}

std::unique_ptr<SideStore> ResidualStore::plain_sinks() const {
  return policy_.sinks.value > 0 ? plain_store(kv_heads_, dim_, side_, dtype_, "sink_rows", Scope::sequence) : nullptr;
}
std::unique_ptr<SideStore> ResidualStore::plain_residual() const {
  return plain_store(kv_heads_, dim_, side_, dtype_, "residual", Scope::sequence);
}

ResidualStore::ResidualStore(int kv_heads, int dim, Side side, Dtype dtype, const GroupQuantizer& quantizer, CodedRows coded_rows)
    : ResidualStore(kv_heads, dim, side, dtype, std::make_unique<GroupCoder>(kv_heads, dim, side, quantizer),
                    {.coded_rows = std::move(coded_rows)}) {}

void ResidualStore::append(View<const float> rows) {
  const std::int64_t to_sinks =
      sinks_ ? std::min(rows.dim(1), std::max<std::int64_t>(0, (policy_.sinks - sinks_->size()).value)) : 0;
  if (to_sinks > 0) sinks_->append(rows.slice(1, 0, to_sinks));
  if (to_sinks < rows.dim(1)) residual_->append(rows.slice(1, to_sinks, rows.dim(1) - to_sinks));
  if (policy_.own_step_coded && prompt_done_) code_aged();
}

void ResidualStore::settle(bool prompt_done) {
  if (prompt_done || prompt_done_) code_aged();
  if (prompt_done && !prompt_done_) coder_->end_prompt();
  prompt_done_ = prompt_done_ || prompt_done;
}

void ResidualStore::code_aged() {
  const std::int64_t aged = (policy_.coded_rows(size()) - coded()).value;
  if (aged <= 0) return;
  Array rows({kv_heads_, aged, dim_});
  for (int h = 0; h < kv_heads_; ++h) residual_->read(h, 0, rows.view()[h]);
  coder_->append(rows.view());
  residual_->drop_front(Tokens(aged));
}

Tokens ResidualStore::size() const { return behind() + residual_->size(); }

void ResidualStore::read(int kv_head, std::int64_t first, View<float> out) const {
  const std::int64_t end = first + out.dim(0);
  std::int64_t start = 0;
  const auto part = [&](std::int64_t rows, const auto& read_rows) {
    const std::int64_t from = std::max(first, start), to = std::min(end, start + rows);
    if (from < to) read_rows(from - start, out.slice(0, from - first, to - from));
    start += rows;
  };
  if (sinks_) part(sinks_->size().value, [&](std::int64_t at, View<float> to) { sinks_->read(kv_head, at, to); });
  part(coded().value, [&](std::int64_t at, View<float> to) { coder_->read(kv_head, at, to); });
  part(residual_->size().value, [&](std::int64_t at, View<float> to) { residual_->read(kv_head, at, to); });
}

void ResidualStore::check_crop(Tokens length) const {
  if (coded().value > 0 && length < size() && policy_.coded_rows(length) != coded())
    throw Unsupported(cat("crop to ", length.value, " tokens would take back rows that are quantized: ", coded().value,
                          " are, at that length ", policy_.coded_rows(length).value, " were"));
}

void ResidualStore::crop(Tokens length) {
  check_crop(length);
  if (sinks_) sinks_->crop(std::min(length, sinks_->size()));
  residual_->crop(std::max(Tokens(0), length - behind()));
}

void ResidualStore::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  coder_->buffers(prefix, out);
  if (sinks_) sinks_->buffers(prefix, out);
  residual_->buffers(prefix, out);
}

void ResidualStore::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  auto coder = coder_->fresh();
  auto sinks = plain_sinks(), residual = plain_residual();
  coder->load(prefix, saved);
  residual->load(prefix, saved);
  if (sinks) {
    sinks->load(prefix, saved);
    const bool open = sinks->size() < policy_.sinks;  // then every token is one of the first
    if (sinks->size() > policy_.sinks || (open && coder->rows() + residual->size().value > 0))
      throw InvalidArgument(cat("buffers ", prefix, "sink_rows hold ", sinks->size().value, " rows, must hold ", policy_.sinks.value,
                                " before any other row is kept"));
  }
  coder_ = std::move(coder);
  sinks_ = std::move(sinks);
  residual_ = std::move(residual);
  prompt_done_ = true;
}

void CodedStore::read(int kv_head, std::int64_t first, View<float> out) const {
  coder_->read(kv_head, first, out);
  for (std::int64_t i = 0; i < out.dim(0); ++i) num::round_to(dtype_, out.row(i));
}

void CodedStore::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  std::vector<NamedBuffer> all;
  coder_->buffers(prefix, all);
  std::vector<std::string_view> components;
  for (const NamedBuffer& b : all)
    if (std::ranges::find(components, b.component) == components.end()) components.push_back(b.component);
  for (const std::string_view component : components)
    for (NamedBuffer& b : all)
      if (b.component == component) out.push_back(std::move(b));
}

void CodedStore::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  auto loaded = coder_->fresh();
  loaded->load(prefix, saved);
  coder_ = std::move(loaded);
}

}  // namespace kvatlas
