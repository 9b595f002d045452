#include "answers/user_kernel.hpp"

#include <dlfcn.h>

#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "answers/kvatlas_kernel.h"
#include "core/errors.hpp"

namespace kvatlas::answers {

namespace {

std::vector<kvatlas_array> arrays_of(const TensorMap& tensors) {
  std::vector<kvatlas_array> out;
  for (const auto& [name, t] : tensors) out.push_back({.name = name.c_str(), .values = t.values.data(), .dims = t.dims.data(), .rank = static_cast<std::int32_t>(t.dims.size())});
  return out;
}

int take_array(void* state, const char* name, const char* type, const void* data, const std::int64_t* dims, std::int32_t rank) noexcept {
  try {
    io::RawTensor t;
    const std::string_view word = type;
    if (word == "F32") t.type = io::ElementType::f32;
    else if (word == "F16") t.type = io::ElementType::f16;
    else if (word == "BF16") t.type = io::ElementType::bf16;
    else return 1;
    if (rank < 0) return 1;
    t.dims.assign(dims, dims + rank);
    const std::int64_t n = io::element_count(t.dims);
    if (n < 0) return 1;
    const auto bytes = std::span(static_cast<const std::byte*>(data), static_cast<std::size_t>(n * io::bytes_of(t.type)));
    t.bytes.assign(bytes.begin(), bytes.end());
    static_cast<KernelResults*>(state)->tensors[name] = std::move(t);
    return 0;
  } catch (const std::exception&) {  // no memory: an exception must not cross the library
    return 1;
  }
}

int take_buffer(void* state, const char* stage, const char* name, const void* bytes, std::size_t count) noexcept {
  try {
    if (std::string_view(stage) != "prompt" && std::string_view(stage) != "end") return 1;
    const auto from = std::span(static_cast<const std::byte*>(bytes), count);
    static_cast<KernelResults*>(state)->stages[stage][name].assign(from.begin(), from.end());
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

}  // namespace

KernelResults run_library(const VectorCase& of, const std::string& path) {
  // A name without a slash would be searched for in the system's folders.
  const std::string file = path.find('/') == std::string::npos ? "./" + path : path;
  const std::unique_ptr<void, int (*)(void*)> library(dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL), [](void* l) { return l == nullptr ? 0 : dlclose(l); });
  if (library == nullptr) throw IoError(cat(path, ": cannot be loaded: ", dlerror()));
  void* symbol = dlsym(library.get(), "kvatlas_run_case");
  if (symbol == nullptr) throw IoError(cat(path, ": has no function kvatlas_run_case, which answers/kvatlas_kernel.h declares"));
  decltype(&kvatlas_run_case) run = nullptr;
  std::memcpy(&run, &symbol, sizeof run);
  const LayerClass& c = of.shape.classes.front();
  const std::string method = of.choice.canonical(), description = describe(of).dump();
  const std::vector<kvatlas_array> inputs = arrays_of(of.inputs), trained = arrays_of(of.trained);
  const kvatlas_case one{.abi = KVATLAS_KERNEL_ABI, .layers = c.count(), .q_heads = c.q_heads, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim,
                         .prompt = of.prompt, .chunk = of.chunk, .decode = of.decode, .rope_base = c.rope.base, .rotary_dim = c.rope.rotary_dim,
                         .rope_interleaved = c.rope.layout == RopeLayout::interleaved ? 1 : 0, .input_count = static_cast<std::int32_t>(inputs.size()),
                         .trained_count = static_cast<std::int32_t>(trained.size()), .method = method.c_str(), .dtype = name_of(of.shape.dtype), .description = description.c_str(),
                         .inputs = inputs.data(), .trained = trained.data()};
  KernelResults results;
  const kvatlas_results to{.state = &results, .array = take_array, .buffer = take_buffer};
  if (const int answer = run(&one, &to); answer != 0) throw Error(cat(path, ": kvatlas_run_case answered ", answer, ", must answer 0"));
  return results;
}

}  // namespace kvatlas::answers
