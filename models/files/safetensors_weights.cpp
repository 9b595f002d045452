#include "models/files/safetensors_weights.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/errors.hpp"
#include "core/io/safetensors.hpp"
#include "models/files/printable.hpp"

namespace kvatlas::models {

namespace {

using nlohmann::json;

constexpr int kIndexDepth = 8;  // {"weight_map": {...}} beside a metadata object of the maker's

json parse_index_json(std::string_view text, std::string_view name) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kIndexDepth) throw IoError(cat(name, ": the index nests its values deeper than ", kIndexDepth, " levels"));
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      throw IoError(cat(name, ": the index names ", printable(value.get<std::string>()), " twice"));
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::exception&) {
    throw IoError(cat(name, ": neither a GGUF file, nor safetensors, nor the JSON of an index"));
  }
}

}  // namespace

SafetensorsWeights parse_safetensors_weights(std::span<const std::byte> file, std::string_view name) {
  const io::SafeTensorsView view = io::view_safetensors(file, name);
  SafetensorsWeights out;
  for (const auto& [key, tensor] : view.tensors) {
    TensorInfo info{.name = key, .type = TensorType::f32, .shape = tensor.dims, .bytes = tensor.bytes};
    switch (tensor.type) {
      case io::ElementType::f32: break;
      case io::ElementType::f16: info.type = TensorType::f16; break;
      case io::ElementType::bf16: info.type = TensorType::bf16; break;
      case io::ElementType::f64:
        throw Unsupported(cat(name, ": tensor ", printable(key), " has dtype F64, must be one of F32, F16, BF16"));
      default: out.unread.push_back(key); continue;
    }
    out.tensors.push_back(std::move(info));
  }
  std::stable_sort(out.tensors.begin(), out.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) { return a.bytes.data() < b.bytes.data(); });
  return out;
}

std::map<std::string, std::string> parse_safetensors_index(std::string_view text, std::string_view name) {
  const json index = parse_index_json(text, name);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object())
    throw IoError(cat(name, ": an index must be an object with an object weight_map"));
  std::map<std::string, std::string> out;
  for (const auto& [tensor, value] : map->items()) {
    if (!value.is_string()) throw IoError(cat(name, ": weight_map must name a file for tensor ", printable(tensor)));
    const auto file = value.get<std::string>();
    if (file.empty() || file == "." || file == ".." || file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
      throw IoError(cat(name, ": tensor ", printable(tensor), " lies in ", printable(file), ", must be a file beside the index"));
    out.emplace(tensor, file);
  }
  return out;
}

}  // namespace kvatlas::models
