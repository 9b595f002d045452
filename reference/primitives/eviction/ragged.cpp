#include "reference/primitives/eviction/ragged.hpp"

#include <cstring>

#include "core/errors.hpp"

namespace kvatlas::eviction {

namespace {

std::vector<std::byte> lengths_of(const TokenRows& rows) {
  std::vector<std::int32_t> sums{0};
  for (int h = 0; h < rows.heads(); ++h) sums.push_back(sums.back() + static_cast<std::int32_t>(rows.count(h)));
  std::vector<std::byte> bytes(sums.size() * sizeof(std::int32_t));
  std::memcpy(bytes.data(), sums.data(), bytes.size());
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

}  // namespace kvatlas::eviction
