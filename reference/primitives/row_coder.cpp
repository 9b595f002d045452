#include "reference/primitives/row_coder.hpp"

#include <algorithm>

#include "core/errors.hpp"

namespace kvatlas {

void RowCoder::drop_front(std::int64_t) { throw Unsupported("rows are coded together, so the oldest cannot leave alone"); }
void RowCoder::truncate(std::int64_t) { throw Unsupported("rows are coded together, so the newest cannot leave alone"); }

Array joined_heads(View<const float> rows) {
  const std::int64_t heads = rows.dim(0), n = rows.dim(1), dim = rows.dim(2);
  Array all({n, heads * dim});
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t h = 0; h < heads; ++h) std::ranges::copy(rows.row(h, i), all.view().row(i).begin() + h * dim);
  return all;
}

GroupCoder::GroupCoder(int kv_heads, int dim, Side side, const GroupQuantizer& quantizer, HeadSpan span)
    : kv_heads_(kv_heads), dim_(dim), side_(side), quantizer_(quantizer), span_(span),
      runs_(static_cast<std::size_t>(span == HeadSpan::one ? kv_heads : 1), GroupRows(quantizer, span == HeadSpan::one ? dim : kv_heads * dim)) {}

void GroupCoder::append(View<const float> rows) {
  if (span_ == HeadSpan::all) {
    runs_.front().append(joined_heads(rows).view());
    return;
  }
  for (std::size_t h = 0; h < runs_.size(); ++h) runs_[h].append(rows[static_cast<std::int64_t>(h)]);
}

void GroupCoder::read(int kv_head, std::int64_t first, View<float> out) const {
  if (span_ == HeadSpan::all) runs_.front().read(first, out, std::int64_t{kv_head} * dim_);
  else runs_[static_cast<std::size_t>(kv_head)].read(first, out);
}

void GroupCoder::drop_front(std::int64_t count) {
  if (count % quantizer_.block_rows() != 0) RowCoder::drop_front(count);
  for (GroupRows& r : runs_) r.drop_front(count);
}

void GroupCoder::truncate(std::int64_t rows) {
  if (rows % quantizer_.block_rows() != 0) RowCoder::truncate(rows);
  for (GroupRows& r : runs_) r.truncate(rows);
}

namespace {
std::string run_name(const std::string& prefix, const char* component, HeadSpan span, std::size_t run) {
  return span == HeadSpan::all ? cat(prefix, component, "/heads") : cat(prefix, component, "/head", run);
}
}  // namespace

void GroupCoder::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  const auto add = [&](const char* component, Scope scope, std::size_t run, std::span<const std::byte> bytes) {
    out.push_back({.name = run_name(prefix, component, span_, run), .component = component, .side = side_, .scope = scope,
                   .bytes = {bytes.begin(), bytes.end()}});
  };
  for (std::size_t r = 0; r < runs_.size(); ++r) {
    add("codes", Scope::token, r, runs_[r].codes());
    add("scales", Scope::group, r, runs_[r].scales());
    if (quantizer_.has_zero()) add("zeros", Scope::group, r, runs_[r].zeros());
  }
}

void GroupCoder::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  for (std::size_t r = 0; r < runs_.size(); ++r) {
    const auto bytes = [&](const char* component) -> std::span<const std::byte> {
      return find_buffer(saved, run_name(prefix, component, span_, r)).bytes;
    };
    runs_[r].load(bytes("codes"), bytes("scales"), quantizer_.has_zero() ? bytes("zeros") : std::span<const std::byte>(), static_cast<int>(r));
    if (runs_[r].rows() != runs_.front().rows())
      throw InvalidArgument(cat("buffer ", run_name(prefix, "codes", span_, r), " holds ", runs_[r].rows(), " rows, must hold ",
                                runs_.front().rows(), " as in every head"));
  }
}

std::unique_ptr<RowCoder> GroupCoder::fresh() const { return std::make_unique<GroupCoder>(kv_heads_, dim_, side_, quantizer_, span_); }

}  // namespace kvatlas
