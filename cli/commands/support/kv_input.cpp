#include "cli/commands/support/kv_input.hpp"

#include "core/errors.hpp"
#include "core/io/npy.hpp"
#include "core/io/safetensors.hpp"

namespace kvatlas::cli {

namespace {

std::string spell(const std::vector<std::int64_t>& dims) {
  std::string text;
  for (const std::int64_t d : dims) text += cat(text.empty() ? "" : ", ", d);
  return cat("[", text, "]");
}

/// File content is not the command's fault: a wrong tensor ends the run (exit 1), it does not make the command wrong.
NamedTensor floats(const io::RawTensor& raw, const std::string& name) {
  try {
    return io::to_floats(raw, name);
  } catch (const InvalidArgument& e) {
    throw IoError(e.what());
  }
}

void check(const KvInput& in) {
  const auto shaped = [](const NamedTensor& t, const char* name) {
    if (t.dims.size() != 3) throw IoError(cat(name, " has shape ", spell(t.dims), ", must be [heads, tokens, dim]"));
    if (t.values.empty()) throw IoError(cat(name, " has shape ", spell(t.dims), ", must not be empty"));
  };
  shaped(in.k, "k");
  shaped(in.v, "v");
  if (in.k.dims[0] != in.v.dims[0] || in.k.dims[1] != in.v.dims[1])
    throw IoError(cat("k has shape ", spell(in.k.dims), ", v has ", spell(in.v.dims), "; heads and tokens must be equal"));
  if (!in.q) return;
  shaped(*in.q, "q");
  if (in.q->dims[1] != in.k.dims[1] || in.q->dims[2] != in.k.dims[2] || in.q->dims[0] % in.k.dims[0] != 0)
    throw IoError(cat("q has shape ", spell(in.q->dims), ", k has ", spell(in.k.dims),
                      "; tokens and dim must be equal, query heads a multiple of kv heads"));
}

Dtype dtype_of(io::ElementType type) { return type == io::ElementType::f16 ? Dtype::f16 : Dtype::bf16; }

}  // namespace

KvInput read_kv(const std::optional<std::string>& safetensors, const std::optional<std::string>& q,
                const std::optional<std::string>& k, const std::optional<std::string>& v) {
  KvInput in;
  if (safetensors) {
    const io::SafeTensors file = io::read_safetensors(*safetensors);
    for (const char* name : {"k", "v"})
      if (!file.tensors.contains(name)) throw IoError(cat(*safetensors, " has no tensor ", name, "; it must hold k and v, and may hold q"));
    in.k = floats(file.at("k"), "k");
    in.v = floats(file.at("v"), "v");
    if (file.tensors.contains("q")) in.q = floats(file.at("q"), "q");
    in.dtype = dtype_of(file.at("k").type);
    if (const auto rope = file.metadata.find("rope"); rope != file.metadata.end()) {
      if (rope->second != "before" && rope->second != "after")
        throw IoError(cat(*safetensors, ": metadata rope is \"", rope->second, "\", must be before or after"));
      in.before_rope = rope->second == "before";
    }
  } else {
    const io::RawTensor raw = io::read_npy(*k);
    in.dtype = dtype_of(raw.type);
    in.k = floats(raw, *k);
    in.v = floats(io::read_npy(*v), *v);
    if (q) in.q = floats(io::read_npy(*q), *q);
  }
  check(in);
  return in;
}

View<const float> view_of(const NamedTensor& t) { return {t.values.data(), {t.dims[0], t.dims[1], t.dims[2]}}; }

}  // namespace kvatlas::cli
