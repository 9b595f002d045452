#include "reference/primitives/trained.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include "core/errors.hpp"

namespace kvatlas {

namespace {

std::string text_of(const std::vector<std::int64_t>& dims) {
  std::string text = "[";
  for (const std::int64_t d : dims) text += cat(text.size() > 1 ? ", " : "", d == 0 ? std::string("any") : cat(d));
  return text + "]";
}

const NamedTensor& find(const TensorMap& file, const std::string& name) {
  const auto found = file.find(name);
  if (found == file.end()) throw InvalidArgument(cat("trained file has no tensor \"", name, "\""));
  return found->second;
}

void require_finite(const NamedTensor& t, const std::string& name) {
  if (!std::ranges::all_of(t.values, [](float f) { return std::isfinite(f); })) throw InvalidArgument(cat("tensor \"", name, "\" must be finite"));
}

}  // namespace

std::string trained_name(int layer, std::string_view part) { return cat("layer", layer, ".", part); }

const NamedTensor& trained_tensor(const TensorMap& file, int layer, std::string_view part, const std::vector<std::int64_t>& dims) {
  const std::string name = trained_name(layer, part);
  const NamedTensor& t = find(file, name);
  if (!std::ranges::equal(t.dims, dims, [](std::int64_t has, std::int64_t asked) { return asked == 0 ? has > 0 : has == asked; }))
    throw InvalidArgument(cat("tensor \"", name, "\" is ", text_of(t.dims), ", must be ", text_of(dims)));
  require_finite(t, name);
  return t;
}

const std::vector<float>& trained_values(const TensorMap& file, int layer, std::string_view part, std::int64_t count) {
  const std::string name = trained_name(layer, part);
  const NamedTensor& t = find(file, name);
  if (static_cast<std::int64_t>(t.values.size()) != count)
    throw InvalidArgument(cat("tensor \"", name, "\" has ", t.values.size(), " values, must have ", count));
  require_finite(t, name);
  return t.values;
}

std::vector<std::uint16_t> trained_channels(const TensorMap& file, int layer, std::string_view part, int heads, int each, int channels) {
  const std::string name = trained_name(layer, part);
  std::vector<std::uint16_t> out;
  for (const float f : trained_values(file, layer, part, std::int64_t{heads} * each)) {
    if (!(f >= 0 && f < static_cast<float>(channels)) || f != std::floor(f))
      throw InvalidArgument(cat("tensor \"", name, "\" holds ", f, ", must hold channels below ", channels));
    out.push_back(static_cast<std::uint16_t>(f));
  }
  for (int h = 0; h < heads; ++h) {
    std::vector<std::uint16_t> head(out.begin() + std::ptrdiff_t{h} * each, out.begin() + std::ptrdiff_t{h + 1} * each);
    std::ranges::sort(head);
    if (const auto twice = std::ranges::adjacent_find(head); twice != head.end())
      throw InvalidArgument(cat("tensor \"", name, "\" names channel ", *twice, " twice", heads > 1 ? " in one head" : ""));
  }
  return out;
}

}  // namespace kvatlas
