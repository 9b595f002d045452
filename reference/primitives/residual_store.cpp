#include "reference/primitives/residual_store.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas {

ResidualStore::ResidualStore(int kv_heads, int dim, Side side, Dtype dtype, const GroupQuantizer& quantizer, CodedRows coded_rows)
    : dim_(dim), side_(side), quantizer_(quantizer), coded_rows_(std::move(coded_rows)),
      coded_(static_cast<std::size_t>(kv_heads), GroupRows(quantizer, dim)),
      residual_(plain_store(kv_heads, dim, side, dtype, "residual", Scope::sequence)) {}

void ResidualStore::append(View<const float> rows) { residual_->append(rows); }

void ResidualStore::settle(bool prompt_done) {
  if (!prompt_done) return;
  const std::int64_t aged = (coded_rows_(size()) - coded()).value;
  if (aged <= 0) return;
  Array rows({aged, dim_});
  for (std::size_t h = 0; h < coded_.size(); ++h) {
    residual_->read(static_cast<int>(h), 0, rows.view());
    coded_[h].append(rows.view());
  }
  residual_->drop_front(Tokens(aged));
}

Tokens ResidualStore::size() const { return coded() + residual_->size(); }

void ResidualStore::read(int kv_head, std::int64_t first, View<float> out) const {
  const std::int64_t from_coded = std::clamp<std::int64_t>(coded().value - first, 0, out.dim(0));
  if (from_coded > 0) coded_[static_cast<std::size_t>(kv_head)].read(first, out.slice(0, 0, from_coded));
  if (from_coded < out.dim(0))
    residual_->read(kv_head, first + from_coded - coded().value, out.slice(0, from_coded, out.dim(0) - from_coded));
}

void ResidualStore::check_crop(Tokens length) const {
  if (coded().value > 0 && length < size() && coded_rows_(length) != coded())
    throw Unsupported(cat("crop to ", length.value, " tokens would take back rows that are quantized: ", coded().value,
                          " are, at that length ", coded_rows_(length).value, " were"));
}

void ResidualStore::crop(Tokens length) {
  check_crop(length);
  residual_->crop(length - coded());
}

void ResidualStore::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  const auto add = [&](const char* component, Scope scope, std::size_t head, std::span<const std::byte> bytes) {
    out.push_back({.name = cat(prefix, component, "/head", head), .component = component, .side = side_, .scope = scope,
                   .bytes = {bytes.begin(), bytes.end()}});
  };
  for (std::size_t h = 0; h < coded_.size(); ++h) {
    add("codes", Scope::token, h, coded_[h].codes());
    add("scales", Scope::group, h, coded_[h].scales());
    add("zeros", Scope::group, h, coded_[h].minima());
  }
  residual_->buffers(prefix, out);
}

void ResidualStore::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  std::vector<GroupRows> loaded(coded_.size(), GroupRows(quantizer_, dim_));
  for (std::size_t h = 0; h < loaded.size(); ++h) {
    const auto bytes = [&](const char* component) -> const std::vector<std::byte>& {
      return find_buffer(saved, cat(prefix, component, "/head", h)).bytes;
    };
    loaded[h].load(bytes("codes"), bytes("scales"), bytes("zeros"), static_cast<int>(h));
    if (loaded[h].rows() != loaded.front().rows())
      throw InvalidArgument(cat("buffer ", prefix, "codes/head", h, " holds ", loaded[h].rows(), " rows, must hold ",
                                loaded.front().rows(), " as in every head"));
  }
  residual_->load(prefix, saved);  // refuses before it changes anything
  coded_ = std::move(loaded);
}

}  // namespace kvatlas
