#include "core/io/safetensors.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/errors.hpp"
#include "core/io/file.hpp"

namespace kvatlas::io {

namespace {

using nlohmann::json;

constexpr std::uint64_t kHeaderLimit = 100'000'000;  // as in the reference implementation
constexpr std::array kReadable{ElementType::f16, ElementType::bf16, ElementType::f32, ElementType::f64, ElementType::i8,
                               ElementType::i16, ElementType::i32, ElementType::i64, ElementType::u8, ElementType::u16,
                               ElementType::u32, ElementType::u64, ElementType::boolean};

ElementType element_type(const std::string& text, const std::string& where) {
  std::string allowed;
  for (const ElementType type : kReadable) {
    if (text == name_of(type)) return type;
    allowed += cat(allowed.empty() ? "" : ", ", name_of(type));
  }
  throw IoError(cat(where, ": dtype is ", text, ", must be one of ", allowed));
}

std::int64_t length(const json& value, const std::string& where, std::string_view key) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > (std::uint64_t{1} << 62U))
    throw IoError(cat(where, ": ", key, " holds ", value.dump(), ", must be a whole number of at most 2^62"));
  return value.get<std::int64_t>();
}

/// The header as JSON. A key given twice in one object would be two answers to one question: refused.
json parse_header(std::string_view text, std::string_view name) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > 3) throw IoError(cat(name, ": the header is nested too deeply for safetensors"));
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      throw IoError(cat(name, ": the header names ", value.dump(), " twice"));
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::exception&) {
    throw IoError(cat(name, ": the header is not JSON"));
  }
}

struct Placed {
  std::string name;
  std::uint64_t begin = 0, end = 0;
};

}  // namespace

const RawTensor& SafeTensors::at(std::string_view name) const {
  const auto found = tensors.find(name);
  if (found != tensors.end()) return found->second;
  std::vector<std::string_view> names;
  for (const auto& [key, tensor] : tensors) names.emplace_back(key);
  throw InvalidArgument(unknown_name("tensor", name, names));
}

SafeTensorsView view_safetensors(std::span<const std::byte> file, std::string_view name) {
  if (file.size() < 8) throw IoError(cat(name, ": ", file.size(), " bytes are too few for a safetensors file (cut off?)"));
  std::uint64_t header_size = 0;
  std::memcpy(&header_size, file.data(), 8);
  if (header_size > kHeaderLimit)
    throw IoError(cat(name, ": the header announces ", header_size, " bytes, must be at most ", kHeaderLimit, " (not a safetensors file?)"));
  if (header_size > file.size() - 8)
    throw IoError(cat(name, ": cut off within the header (", header_size, " bytes announced, ", file.size() - 8, " present)"));
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, static_cast<std::size_t>(header_size));
  if (!text.starts_with('{')) throw IoError(cat(name, ": the header must start with '{'"));
  const json header = parse_header(text, name);
  const std::span<const std::byte> data = file.subspan(8 + static_cast<std::size_t>(header_size));

  SafeTensorsView out;
  std::vector<Placed> placed;
  for (const auto& [key, entry] : header.items()) {
    if (key == "__metadata__") {
      if (!entry.is_object()) throw IoError(cat(name, ": __metadata__ must be an object of texts"));
      for (const auto& [word, value] : entry.items()) {
        if (!value.is_string()) throw IoError(cat(name, ": metadata ", word, " must be a text"));
        out.metadata[word] = value.get<std::string>();
      }
      continue;
    }
    const std::string where = cat(name, ": tensor ", key);
    if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets"))
      throw IoError(cat(where, " must have exactly dtype, shape and data_offsets"));
    if (!entry["dtype"].is_string() || !entry["shape"].is_array() || !entry["data_offsets"].is_array() || entry["data_offsets"].size() != 2)
      throw IoError(cat(where, ": dtype must be a text, shape a list, data_offsets a list of two"));
    PlacedTensor tensor{.type = element_type(entry["dtype"].get<std::string>(), where), .dims = {}, .bytes = {}};
    for (const json& d : entry["shape"]) tensor.dims.push_back(length(d, where, "shape"));
    const auto begin = static_cast<std::uint64_t>(length(entry["data_offsets"][0], where, "data_offsets"));
    const auto end = static_cast<std::uint64_t>(length(entry["data_offsets"][1], where, "data_offsets"));
    if (begin > end || end > data.size())
      throw IoError(cat(where, ": data_offsets are [", begin, ", ", end, "], must lie within the file's ", data.size(), " bytes of data"));
    const std::int64_t n = element_count(tensor.dims);
    if (n < 0 || static_cast<std::uint64_t>(n) > (end - begin) || static_cast<std::uint64_t>(n * bytes_of(tensor.type)) != end - begin)
      throw IoError(cat(where, ": shape and dtype do not fill its ", end - begin, " bytes"));
    tensor.bytes = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    placed.push_back({.name = key, .begin = begin, .end = end});
    out.tensors.emplace(key, std::move(tensor));
  }

  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t reached = 0;
  for (const Placed& p : placed) {
    if (p.begin != reached)
      throw IoError(cat(name, ": tensor ", p.name, p.begin < reached ? " overlaps its neighbour" : " leaves a gap before it", " (byte ", p.begin, ", expected ", reached, ")"));
    reached = p.end;
  }
  if (reached != data.size())
    throw IoError(cat(name, ": tensors end at byte ", reached, " of data, the file holds ", data.size()));
  return out;
}

SafeTensors parse_safetensors(std::span<const std::byte> file, std::string_view name) {
  SafeTensorsView placed = view_safetensors(file, name);
  SafeTensors out{.tensors = {}, .metadata = std::move(placed.metadata)};
  for (auto& [key, tensor] : placed.tensors)
    out.tensors.emplace(key, RawTensor{.type = tensor.type, .dims = std::move(tensor.dims), .bytes = {tensor.bytes.begin(), tensor.bytes.end()}});
  return out;
}

SafeTensors read_safetensors(const std::string& path) { return parse_safetensors(read_file(path), path); }

std::vector<std::byte> safetensors_bytes(const SafeTensors& content) {
  json header = json::object();
  if (!content.metadata.empty()) header["__metadata__"] = content.metadata;
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : content.tensors) {
    const std::int64_t n = element_count(tensor.dims);
    if (n < 0 || static_cast<std::uint64_t>(n) > tensor.bytes.size() ||
        static_cast<std::uint64_t>(n * bytes_of(tensor.type)) != tensor.bytes.size())
      throw InvalidArgument(cat("tensor ", name, " has ", tensor.bytes.size(), " bytes, which its shape and type do not fill"));
    header[name] = {{"dtype", name_of(tensor.type)}, {"shape", tensor.dims}, {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception&) {
    throw InvalidArgument("a tensor's name or the metadata is not UTF-8");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t size = text.size();
  std::vector<std::byte> out;
  out.reserve(8 + text.size() + offset);
  const auto append = [&](const void* p, std::size_t n) {
    const auto* b = static_cast<const std::byte*>(p);
    out.insert(out.end(), b, b + n);
  };
  append(&size, 8);
  append(text.data(), text.size());
  for (const auto& [name, tensor] : content.tensors) append(tensor.bytes.data(), tensor.bytes.size());
  return out;
}

void write_safetensors(const std::string& path, const SafeTensors& content) { write_file(path, safetensors_bytes(content)); }

TensorMap read_float_tensors(const std::string& path) {
  TensorMap out;
  for (const auto& [name, tensor] : read_safetensors(path).tensors) out.emplace(name, to_floats(tensor, cat(path, ": tensor ", name)));
  return out;
}

}  // namespace kvatlas::io
