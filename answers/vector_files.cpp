// Cases of vectors as folders: case.json, one .npy file an array, one a stage's buffers.
#include <initializer_list>
#include <map>
#include <span>

#include "answers/vectors.hpp"
#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "core/io/npy.hpp"
#include "reference/compose/trained_inputs.hpp"
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
    case VectorKind::speculation:
      return "the target is a table: token t asks, stores and says rows t of q, k and v (before RoPE, first rounded to dtype) at its position; its logits are products of the last layer's "
             "output, heads behind one another, with the rows of head; of equal logits the lowest token. All tokens of text but the last go in at once; stage prompt; then `decode` rounds: the "
             "draft is a tree of 3 levels, on each both guesses draft[t] for the token t before, of which the first is continued; the step is verified as the method says, greedily; "
             "emitted has its tokens, then -1; stage end. fed has token and position of every row in the order in which rows went in, out what attention made of it.";
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

/// A whole number within a range: a fraction or a huge number would become another one on its way into an int.
std::int64_t whole(const Json& j, const char* key, std::int64_t least, std::int64_t most, const std::string& where) {
  const auto value = at<Json>(j, key, where);
  if (!value.is_number_integer() || value.get<double>() < static_cast<double>(least) || value.get<double>() > static_cast<double>(most))
    throw IoError(cat(where, ": ", key, " is ", value.dump(), ", must be a whole number from ", least, " to ", most));
  return value.get<std::int64_t>();
}

int dimension(const Json& j, const char* key, int least, const std::string& where) { return static_cast<int>(whole(j, key, least, 1 << 16, where)); }

/// The place of a text in its list of allowed ones.
std::size_t one_of(const Json& j, const char* key, std::initializer_list<const char*> names, const std::string& where) {
  const auto value = at<std::string>(j, key, where);
  std::string allowed;
  for (const char* const* n = names.begin(); n != names.end(); ++n) {
    if (value == *n) return static_cast<std::size_t>(n - names.begin());
    allowed += cat(allowed.empty() ? "" : ", ", *n);
  }
  throw IoError(cat(where, ": ", key, " is \"", value, "\", must be one of ", allowed));
}

std::string spell(const std::vector<std::int64_t>& dims) {
  std::string text;
  for (const std::int64_t d : dims) text += cat(text.empty() ? "[" : ", ", d);
  return text.empty() ? "[]" : text + "]";
}

using Dims = std::map<std::string, std::vector<std::int64_t>, std::less<>>;

/// throws IoError unless the tensors of a list are those of `wanted`, each with its dimensions
void require_tensors(const TensorMap& found, const Dims& wanted, const char* list, const std::string& where) {
  for (const auto& [name, dims] : wanted) {
    const auto tensor = found.find(name);
    if (tensor == found.end()) throw IoError(cat(where, ": ", list, " lacks ", name));
    if (tensor->second.dims != dims) throw IoError(cat(where, ": ", list, " has ", name, " of shape ", spell(tensor->second.dims), ", must have ", spell(dims)));
  }
  for (const auto& [name, tensor] : found)
    if (!wanted.contains(name)) throw IoError(cat(where, ": ", list, " has ", name, ", which a case of this method does not have"));
}

void require_stages(const VectorCase& c, const std::string& where) {
  if (c.stages.size() != 2 || c.stages[0].name != "prompt" || c.stages[1].name != "end") throw IoError(cat(where, ": stages must be prompt and end, in this order"));
}

/// What the method and the kind of a case demand of its numbers and arrays, so that the reference can run on them.
void require_consistent(const VectorCase& c, const std::string& where) {
  const Method& m = *c.choice.method;
  if ((c.kind == VectorKind::cache && m.open == nullptr) || (c.kind == VectorKind::group && m.open_group == nullptr) || (c.kind == VectorKind::conversion && m.convert == nullptr) ||
      (c.kind == VectorKind::speculation && m.speculate == nullptr))
    throw IoError(cat(where, ": kind is \"", name_of(c.kind), "\", which ", m.slug, " does not have"));
  const auto sentence = why_not(c.shape);
  if (sentence) throw IoError(cat(where, ": shape: ", *sentence));
  if (const auto why = why_not(m, c.choice.row, c.shape)) throw IoError(cat(where, ": ", c.choice.canonical(), ": ", *why));
  const LayerClass& lc = c.shape.classes.front();
  if (!(lc.rope.base > 0 && lc.rope.base <= 1e12)) throw IoError(cat(where, ": base is ", lc.rope.base, ", must be above 0 and at most 1e12"));
  const std::int64_t tokens = c.prompt + c.decode * (c.kind == VectorKind::group ? 2 : 1), layers = lc.count();
  if (c.kind == VectorKind::conversion) {
    const auto width = [&](const char* name, std::size_t axis) {
      const auto tensor = c.inputs.find(name);
      return tensor != c.inputs.end() && tensor->second.dims.size() == 2 ? tensor->second.dims[axis] : 0;
    };
    const std::int64_t hidden = width("w_q", 1), sample = width("calibration", 0);
    require_tensors(c.inputs, {{"w_q", {std::int64_t{lc.q_heads} * lc.k_dim, hidden}}, {"w_k", {std::int64_t{lc.kv_heads} * lc.k_dim, hidden}}, {"w_v", {std::int64_t{lc.kv_heads} * lc.v_dim, hidden}},
                               {"w_o", {hidden, std::int64_t{lc.q_heads} * lc.v_dim}}, {"calibration", {sample, hidden}}}, "inputs", where);
    if (!c.stages.empty()) throw IoError(cat(where, ": stages has ", c.stages.size(), ", must have none: a conversion has no buffers"));
    return;
  }
  if (c.kind == VectorKind::speculation) {
    const auto table = c.inputs.find("head");
    const std::int64_t words = table == c.inputs.end() || table->second.dims.empty() ? 0 : table->second.dims[0];
    require_tensors(c.inputs, {{"q", {layers, lc.q_heads, words, lc.k_dim}}, {"k", {layers, lc.kv_heads, words, lc.k_dim}}, {"v", {layers, lc.kv_heads, words, lc.v_dim}},
                               {"head", {words, std::int64_t{lc.q_heads} * lc.v_dim}}, {"text", {c.prompt}}, {"draft", {words, 2}}}, "inputs", where);
    for (const char* name : {"text", "draft"})
      for (const float t : c.inputs.at(name).values)
        if (!(t >= 0 && t < static_cast<float>(words)) || t != static_cast<float>(static_cast<std::int64_t>(t))) throw IoError(cat(where, ": ", name, " holds ", t, ", must hold tokens from 0 to ", words - 1));
    for (const char* name : {"out", "fed", "emitted"})
      if (!c.outputs.contains(name)) throw IoError(cat(where, ": outputs lacks ", name));
    require_stages(c, where);
    return;
  }
  require_tensors(c.inputs, {{"q", {layers, lc.q_heads, tokens, lc.k_dim}}, {"k", {layers, lc.kv_heads, tokens, lc.k_dim}}, {"v", {layers, lc.kv_heads, tokens, lc.v_dim}}}, "inputs", where);
  require_tensors(c.outputs, {{"out", {layers, lc.q_heads, tokens, lc.v_dim}}}, "outputs", where);
  Dims trained;
  for (const auto& [name, tensor] : scenarios::trained_inputs(m, c.choice.row, c.shape, c.prompt, 0)) trained[name] = tensor.dims;
  require_tensors(c.trained, trained, "trained", where);
  require_stages(c, where);
}

std::vector<std::byte> checked(const io::RawTensor& raw, const Json& row, const std::string& path) {
  const std::string stated = at<std::string>(row, "murmur3_128", path), found = digest(raw.bytes);
  if (stated != found) throw IoError(cat(path, ": hash is ", found, ", case.json states ", stated));
  return raw.bytes;
}

TensorMap read_tensors(const Json& rows, const fs::path& folder) {
  TensorMap out;
  const std::string where = (folder / "case.json").string();
  for (const auto& [name, row] : rows.items()) {
    const std::string path = (folder / at<std::string>(row, "file", where)).string();
    const io::RawTensor raw = io::read_npy(path);
    checked(raw, row, path);
    one_of(row, "dtype", {"float32"}, where);
    if (raw.type != io::ElementType::f32) throw IoError(cat(path, ": elements are ", io::name_of(raw.type), ", case.json states float32"));
    if (const auto stated = at<std::vector<std::int64_t>>(row, "shape", where); stated != raw.dims)
      throw IoError(cat(path, ": shape is ", spell(raw.dims), ", case.json states ", spell(stated)));
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
  if (j.is_discarded() || !j.is_object() || !j.contains("format") || j["format"] != kFormat) throw IoError(cat(path, ": not a case of vectors, must be JSON whose format is \"", kFormat, "\""));
  VectorCase c{.name = at<std::string>(j, "case", path), .kind = VectorKind::cache, .choice = {}, .shape = {}, .inputs = {}, .trained = {}, .outputs = {}, .stages = {}};
  c.kind = static_cast<VectorKind>(one_of(j, "kind", {"cache", "group", "conversion", "speculation"}, path));
  try {
    c.choice = parse_choice(at<std::string>(j, "method", path));
  } catch (const InvalidArgument& e) {
    throw IoError(cat(path, ": ", e.what()));
  }
  const Json shape = at<Json>(j, "shape", path), rope = at<Json>(shape, "rope", path);
  constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16};
  constexpr RopeLayout kLayouts[] = {RopeLayout::half_split, RopeLayout::interleaved};
  c.shape = uniform_shape(dimension(shape, "layers", 1, path), dimension(shape, "q_heads", 1, path), dimension(shape, "kv_heads", 1, path), dimension(shape, "k_dim", 1, path),
                          kDtypes[one_of(shape, "dtype", {"f32", "bf16", "fp16"}, path)],
                          {.base = at<double>(rope, "base", path), .rotary_dim = dimension(rope, "rotary_dim", 0, path), .layout = kLayouts[one_of(rope, "layout", {"half_split", "interleaved"}, path)]});
  c.shape.classes.front().v_dim = dimension(shape, "v_dim", 1, path);
  // A conversion of weights has no tokens.
  const std::int64_t least = c.kind == VectorKind::conversion ? 0 : 1, most = c.kind == VectorKind::conversion ? 0 : std::int64_t{1} << 24;
  c.prompt = whole(j, "prompt", least, most, path);
  c.chunk = whole(j, "chunk", least, most, path);
  c.decode = whole(j, "decode", 0, most, path);
  c.inputs = read_tensors(at<Json>(j, "inputs", path), folder);
  c.trained = read_tensors(at<Json>(j, "trained", path), folder);
  c.outputs = read_tensors(at<Json>(j, "outputs", path), folder);
  for (const Json& row : at<Json>(j, "stages", path)) {
    const std::string file = (folder / at<std::string>(row, "file", path)).string();
    const std::vector<std::byte> all = checked(io::read_npy(file), row, file);
    VectorStage s{.name = at<std::string>(row, "name", path), .buffers = {}};
    for (const Json& b : at<Json>(row, "buffers", path)) {
      const auto offset = at<std::int64_t>(b, "offset", path), size = at<std::int64_t>(b, "bytes", path);
      if (offset < 0 || size < 0 || size > static_cast<std::int64_t>(all.size()) - offset) throw IoError(cat(file, ": a buffer lies past the end of ", all.size(), " bytes"));
      s.buffers.push_back({.name = at<std::string>(b, "name", path), .component = at<std::string>(b, "component", path), .side = at<std::string>(b, "side", path),
                           .scope = at<std::string>(b, "scope", path), .bytes = {all.begin() + offset, all.begin() + offset + size}});
    }
    c.stages.push_back(std::move(s));
  }
  require_consistent(c, path);
  return c;
}

}  // namespace kvatlas::answers
