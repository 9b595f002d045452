#include "reference/primitives/scaled_coder.hpp"

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"

namespace kvatlas {

namespace {
void make_usable(std::vector<float>& factors) {
  for (float& f : factors)
    if (!num::is_finite(f) || f == 0) f = 1.0F;
}
}  // namespace

ScaledCoder::ScaledCoder(std::unique_ptr<RowCoder> inner, int kv_heads, int dim, Side side, Calibrate calibrate, std::vector<float> factors)
    : inner_(std::move(inner)), kv_heads_(kv_heads), dim_(dim), side_(side), calibrate_(std::move(calibrate)), given_(!factors.empty()),
      factors_(std::move(factors)) {
  make_usable(factors_);
}

void ScaledCoder::append(View<const float> rows) {
  if (factors_.empty()) {
    factors_ = calibrate_(rows);
    make_usable(factors_);
  }
  Array scaled({kv_heads_, rows.dim(1), dim_});
  for (std::int64_t h = 0; h < kv_heads_; ++h)
    for (std::int64_t i = 0; i < rows.dim(1); ++i)
      for (std::int64_t c = 0; c < dim_; ++c) scaled.view()(h, i, c) = rows(h, i, c) * factors_[static_cast<std::size_t>(h * dim_ + c)];
  inner_->append(scaled.view());
}

void ScaledCoder::read(int kv_head, std::int64_t first, View<float> out) const {
  inner_->read(kv_head, first, out);
  for (std::int64_t i = 0; i < out.dim(0); ++i)
    for (std::int64_t c = 0; c < dim_; ++c) out(i, c) = out(i, c) / factors_[static_cast<std::size_t>(std::int64_t{kv_head} * dim_ + c)];
}

void ScaledCoder::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  inner_->buffers(prefix, out);
  std::vector<std::byte> bytes(rows() > 0 ? factors_.size() * sizeof(float) : 0);
  if (!bytes.empty()) num::store(Dtype::f32, factors_, bytes);
  out.push_back({.name = cat(prefix, "factors"), .component = "factors", .side = side_, .scope = Scope::layer, .bytes = std::move(bytes)});
}

void ScaledCoder::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  inner_->load(prefix, saved);
  const NamedBuffer& b = find_buffer(saved, cat(prefix, "factors"));
  const std::size_t want = inner_->rows() > 0 ? static_cast<std::size_t>(kv_heads_ * dim_) : 0;
  if (b.bytes.size() != want * sizeof(float)) throw InvalidArgument(cat("buffer ", b.name, " has ", b.bytes.size(), " bytes, must have ", want * sizeof(float)));
  if (want == 0) return;
  factors_.resize(want);
  num::load(Dtype::f32, b.bytes, factors_);
  for (const float f : factors_)
    if (!num::is_finite(f) || f <= 0) throw InvalidArgument(cat("buffer ", b.name, " holds ", f, ", must be finite and above 0"));
}

std::unique_ptr<RowCoder> ScaledCoder::fresh() const {
  return std::make_unique<ScaledCoder>(inner_->fresh(), kv_heads_, dim_, side_, calibrate_, given_ ? factors_ : std::vector<float>{});
}

}  // namespace kvatlas
