// Cases of vectors as folders: case.json, one .npy file an array, one a stage's buffers.
#include <set>
#include <span>

#include "answers/vectors.hpp"
#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "core/io/npy.hpp"
#include "sweeps/hash128.hpp"

namespace kvatlas::answers {

namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "kvatlas vectors 1";

std::string digest(std::span<const std::byte> bytes) { return sweep::hex(sweep::murmur3(bytes.data(), bytes.size())); }

/// All buffers of a stage one behind another.
std::vector<std::byte> joined(const VectorStage& s) {
  std::vector<std::byte> out;
  for (const StoredBuffer& b : s.buffers) out.insert(out.end(), b.bytes.begin(), b.bytes.end());
  return out;
}

Json rope_record(const RopeSpec& rope) {
  return {{"base", rope.base}, {"rotary_dim", rope.rotary_dim}, {"layout", rope.layout == RopeLayout::interleaved ? "interleaved" : "half_split"}};
}

Json tensor_rows(const TensorMap& tensors, const char* folder) {
  Json rows = Json::object();
  for (const auto& [name, t] : tensors)
    rows[name] = {{"file", cat(folder, name, ".npy")}, {"dtype", "float32"}, {"shape", t.dims}, {"murmur3_128", digest(std::as_bytes(std::span(t.values)))}};
  return rows;
}

const char* order_of(VectorKind kind) {
  switch (kind) {
    case VectorKind::cache:
      return "tokens of the prompt in chunks of `chunk`, each through layer 0, 1, ...; end of the prompt; stage prompt; then `decode` tokens one by one through all "
             "layers; stage end. Token i is at position i. Inputs are before RoPE and are first rounded to dtype.";
    case VectorKind::group:
      return "sequence 0 takes the prompt; sequence 1 forks from it; stage prompt; then both go on together, token by token: sequence 0 with tokens prompt + i, "
             "sequence 1 with tokens prompt + decode + i, both at position prompt + i; stage end. Inputs are before RoPE and are first rounded to dtype.";
    case VectorKind::conversion: break;
  }
  return "weights of one attention layer in, converted weights out";
}

template <class T>
T at(const Json& j, const char* key, const std::string& where) {
  try {
    return j.at(key).get<T>();
  } catch (const nlohmann::json::exception&) {
    throw IoError(cat(where, ": ", key, " is missing or of the wrong type"));
  }
}

std::vector<std::byte> checked(const io::RawTensor& raw, const Json& row, const std::string& path) {
  const std::string stated = at<std::string>(row, "murmur3_128", path), found = digest(raw.bytes);
  if (stated != found) throw IoError(cat(path, ": hash is ", found, ", case.json states ", stated));
  return raw.bytes;
}

TensorMap read_tensors(const Json& rows, const fs::path& folder) {
  TensorMap out;
  for (const auto& [name, row] : rows.items()) {
    const std::string path = (folder / at<std::string>(row, "file", (folder / "case.json").string())).string();
    const io::RawTensor raw = io::read_npy(path);
    checked(raw, row, path);
    out[name] = io::to_floats(raw, path);
  }
  return out;
}

}  // namespace

Json describe(const VectorCase& c) {
  const LayerClass& lc = c.shape.classes.front();
  Json stages = Json::array();
  for (const VectorStage& s : c.stages) {
    Json buffers = Json::array();
    std::int64_t offset = 0;
    for (const StoredBuffer& b : s.buffers) {
      buffers.push_back({{"name", b.name}, {"component", b.component}, {"side", b.side}, {"scope", b.scope}, {"offset", offset}, {"bytes", b.bytes.size()}});
      offset += static_cast<std::int64_t>(b.bytes.size());
    }
    stages.push_back({{"name", s.name}, {"file", cat("buffers_", s.name, ".npy")}, {"bytes", offset}, {"murmur3_128", digest(joined(s))}, {"buffers", buffers}});
  }
  return {{"format", kFormat}, {"method", c.choice.canonical()}, {"case", c.name}, {"kind", name_of(c.kind)},
          {"shape", {{"layers", lc.count()}, {"q_heads", lc.q_heads}, {"kv_heads", lc.kv_heads}, {"k_dim", lc.k_dim}, {"v_dim", lc.v_dim}, {"dtype", name_of(c.shape.dtype)},
                     {"rope", rope_record(lc.rope)}}},
          {"prompt", c.prompt}, {"chunk", c.chunk}, {"decode", c.decode}, {"order", order_of(c.kind)},
          {"inputs", tensor_rows(c.inputs, "")}, {"trained", tensor_rows(c.trained, "trained_")},
          {"outputs", tensor_rows(c.outputs, c.kind == VectorKind::conversion ? "converted_" : "")}, {"stages", stages}, {"provenance", "computed"}};
}

std::int64_t write_case(const VectorCase& c, const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw IoError(cat(folder.string(), ": cannot be made: ", error.message()));
  std::int64_t written = 0;
  const auto put = [&](const std::string& name, std::span<const std::byte> bytes) {
    io::write_file((folder / name).string(), bytes);
    written += static_cast<std::int64_t>(bytes.size());
  };
  const Json description = describe(c);
  for (const auto& [list, tensors] : {std::pair{"inputs", &c.inputs}, std::pair{"trained", &c.trained}, std::pair{"outputs", &c.outputs}})
    for (const auto& [name, t] : *tensors) {
      const auto file = description[list][name]["file"].get<std::string>();
      put(file, io::npy_bytes(t, file));
    }
  for (std::size_t i = 0; i < c.stages.size(); ++i) {
    const auto file = description["stages"][i]["file"].get<std::string>();
    const std::vector<std::byte> bytes = joined(c.stages[i]);
    put(file, io::npy_bytes(io::RawTensor{.type = io::ElementType::u8, .dims = {static_cast<std::int64_t>(bytes.size())}, .bytes = bytes}, file));
  }
  const std::string text = description.dump(1) + "\n";
  put("case.json", std::as_bytes(std::span<const char>(text)));
  return written;
}

VectorCase read_case(const fs::path& folder) {
  const std::string path = (folder / "case.json").string();
  const std::vector<std::byte> bytes = io::read_file(path);
  const Json j = Json::parse(reinterpret_cast<const char*>(bytes.data()), reinterpret_cast<const char*>(bytes.data()) + bytes.size(), nullptr, false);
  if (j.is_discarded() || !j.is_object() || j.value("format", "") != kFormat) throw IoError(cat(path, ": not a case of vectors, must be JSON whose format is \"", kFormat, "\""));
  VectorCase c{.name = at<std::string>(j, "case", path), .kind = VectorKind::cache, .choice = {}, .shape = {}, .inputs = {}, .trained = {}, .outputs = {}, .stages = {}};
  const auto kind = at<std::string>(j, "kind", path);
  c.kind = kind == "group" ? VectorKind::group : kind == "conversion" ? VectorKind::conversion : VectorKind::cache;
  try {
    c.choice = parse_choice(at<std::string>(j, "method", path));
  } catch (const InvalidArgument& e) {
    throw IoError(cat(path, ": ", e.what()));
  }
  const Json shape = at<Json>(j, "shape", path), rope = at<Json>(shape, "rope", path);
  const auto dtype = at<std::string>(shape, "dtype", path);
  c.shape = uniform_shape(at<int>(shape, "layers", path), at<int>(shape, "q_heads", path), at<int>(shape, "kv_heads", path), at<int>(shape, "k_dim", path),
                          dtype == "f32" ? Dtype::f32 : dtype == "fp16" ? Dtype::f16 : Dtype::bf16,
                          {.base = at<double>(rope, "base", path), .rotary_dim = at<int>(rope, "rotary_dim", path),
                           .layout = at<std::string>(rope, "layout", path) == "interleaved" ? RopeLayout::interleaved : RopeLayout::half_split});
  c.shape.classes.front().v_dim = at<int>(shape, "v_dim", path);
  c.prompt = at<std::int64_t>(j, "prompt", path);
  c.chunk = at<std::int64_t>(j, "chunk", path);
  c.decode = at<std::int64_t>(j, "decode", path);
  c.inputs = read_tensors(at<Json>(j, "inputs", path), folder);
  c.trained = read_tensors(at<Json>(j, "trained", path), folder);
  c.outputs = read_tensors(at<Json>(j, "outputs", path), folder);
  for (const Json& row : at<Json>(j, "stages", path)) {
    const std::string file = (folder / at<std::string>(row, "file", path)).string();
    const std::vector<std::byte> all = checked(io::read_npy(file), row, file);
    VectorStage s{.name = at<std::string>(row, "name", path), .buffers = {}};
    for (const Json& b : at<Json>(row, "buffers", path)) {
      const auto offset = at<std::int64_t>(b, "offset", path), size = at<std::int64_t>(b, "bytes", path);
      if (offset < 0 || size < 0 || offset + size > static_cast<std::int64_t>(all.size())) throw IoError(cat(file, ": a buffer lies past the end of ", all.size(), " bytes"));
      s.buffers.push_back({.name = at<std::string>(b, "name", path), .component = at<std::string>(b, "component", path), .side = at<std::string>(b, "side", path),
                           .scope = at<std::string>(b, "scope", path), .bytes = {all.begin() + offset, all.begin() + offset + size}});
    }
    c.stages.push_back(std::move(s));
  }
  return c;
}

}  // namespace kvatlas::answers
