#include "reference/primitives/eviction/trained.hpp"

#include <algorithm>
#include <cmath>

#include "core/errors.hpp"

namespace kvatlas::eviction {

namespace {

std::string text_of(const std::vector<std::int64_t>& dims) {
  std::string text = "[";
  for (const std::int64_t d : dims) text += cat(text.size() > 1 ? ", " : "", d == 0 ? std::string("any") : cat(d));
  return text + "]";
}

bool fits(const std::vector<std::int64_t>& given, const std::vector<std::int64_t>& asked) {
  return std::ranges::equal(given, asked, [](std::int64_t a, std::int64_t b) { return b == 0 || a == b; });
}

}  // namespace

std::map<int, NamedTensor> trained_by_layer(const OpenInputs& in, const CacheShape& shape, std::string_view name,
                                            const std::function<std::vector<std::int64_t>(const LayerClass&)>& dims) {
  std::map<int, NamedTensor> parts;
  if (in.trained == nullptr) return parts;
  for (const LayerClass& c : shape.classes)
    for (const int layer : c.layers) {
      if (c.kind != RowKind::kv) continue;
      const std::string key = cat("layer", layer, ".", name);
      const auto found = in.trained->find(key);
      if (found == in.trained->end()) throw InvalidArgument(cat("trained file has no tensor \"", key, "\""));
      if (!fits(found->second.dims, dims(c))) throw InvalidArgument(cat("tensor \"", key, "\" is ", text_of(found->second.dims), ", must be ", text_of(dims(c))));
      if (!std::ranges::all_of(found->second.values, [](float f) { return std::isfinite(f); }))
        throw InvalidArgument(cat("tensor \"", key, "\" must be finite"));
      parts[layer] = found->second;
    }
  return parts;
}

void require_trained(std::string_view method, const OpenInputs& in) {
  if (in.trained == nullptr) throw InvalidArgument(cat(method, " needs a file of trained parts"));
}

}  // namespace kvatlas::eviction
