#include "tests/support/trained_parts.hpp"

#include <algorithm>
#include <stdexcept>

#include "core/errors.hpp"
#include "tests/support/scenario.hpp"

namespace kvatlas::test {

namespace {

NamedTensor seeded(std::vector<std::int64_t> dims, std::uint64_t seed) {
  NamedTensor t{.dims = std::move(dims), .values = {}};
  std::int64_t n = 1;
  for (const std::int64_t d : t.dims) n *= d;
  Random random(seed);
  for (std::int64_t i = 0; i < n; ++i) t.values.push_back(random.normal());
  return t;
}

}  // namespace

TensorMap trained_parts(const Method& method, const CacheShape& shape) {
  TensorMap parts;
  if (std::ranges::find(method.needs, Need::trained_file) == method.needs.end()) return parts;
  const std::string slug = method.slug;
  for (const LayerClass& c : shape.classes)
    for (const int layer : c.layers) {
      const auto seed = static_cast<std::uint64_t>(1000 + layer);
      if (slug == "qfilter") parts[cat("layer", layer, ".filters")] = seeded({c.kv_heads, c.k_dim}, seed);
    }
  if (parts.empty()) throw std::logic_error(cat(slug, " needs trained parts that trained_parts.cpp does not make"));
  return parts;
}

}  // namespace kvatlas::test
