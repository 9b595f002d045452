#include "reference/primitives/eviction/ragged.hpp"

#include "core/errors.hpp"
#include "reference/primitives/numbers.hpp"

namespace kvatlas::eviction {

namespace {

std::vector<std::byte> lengths_of(const TokenRows& rows) {
  std::vector<std::byte> bytes;
  std::int64_t sum = 0;
  append_whole(bytes, sum, 4);
  for (int h = 0; h < rows.heads(); ++h) append_whole(bytes, sum += rows.count(h), 4);
  return bytes;
}

}  // namespace

void add_lengths(const TokenRows& rows, const std::string& prefix, std::vector<NamedBuffer>& out) {
  out.push_back({.name = prefix + "lengths", .component = "lengths", .side = Side::both, .scope = Scope::layer, .bytes = lengths_of(rows)});
}

void check_lengths(const TokenRows& rows, const std::string& prefix, std::span<const NamedBuffer> saved) {
  const NamedBuffer& lengths = find_buffer(saved, prefix + "lengths");
  if (lengths.bytes != lengths_of(rows)) throw InvalidArgument(cat("buffer ", lengths.name, " does not hold the running sums of the heads' rows"));
}

void count_kept(const TokenRows& rows, const LayerClass& stored, ContentCounts& counts) {
  for (int h = 0; h < rows.heads(); ++h) {
    counts.add("kept_rows", rows.count(h));
    counts.add("key_elements", rows.count(h) * stored.k_dim);
    counts.add("value_elements", rows.count(h) * stored.v_dim);
  }
}

}  // namespace kvatlas::eviction
