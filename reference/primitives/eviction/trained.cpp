#include "reference/primitives/eviction/trained.hpp"

#include "core/errors.hpp"
#include "reference/primitives/trained.hpp"

namespace kvatlas::eviction {

std::map<int, NamedTensor> trained_by_layer(const OpenInputs& in, const CacheShape& shape, std::string_view name,
                                            const std::function<std::vector<std::int64_t>(const LayerClass&)>& dims) {
  std::map<int, NamedTensor> parts;
  if (in.trained == nullptr) return parts;
  for (const LayerClass& c : shape.classes)
    for (const int layer : c.layers) {
      if (c.kind != RowKind::kv) continue;
      parts[layer] = trained_tensor(*in.trained, layer, name, dims(c));
    }
  return parts;
}

void require_trained(std::string_view method, const OpenInputs& in) {
  if (in.trained == nullptr) throw InvalidArgument(cat(method, " needs a file of trained parts"));
}

}  // namespace kvatlas::eviction
