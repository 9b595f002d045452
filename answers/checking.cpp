#include "answers/checking.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <span>

#include "core/errors.hpp"
#include "core/float_ops.hpp"
#include "core/formats/dtype.hpp"
#include "core/io/npy.hpp"

namespace kvatlas::answers {

namespace {

namespace fs = std::filesystem;
using io::ElementType;

constexpr std::array<const char*, 10> kDistances{"0", "1", "2", "3-4", "5-8", "9-16", "17-64", "65-256", "257-4096", "more"};
constexpr std::array<std::int64_t, 9> kUpTo{0, 1, 2, 4, 8, 16, 64, 256, 4096};

std::string indices(const std::vector<std::int64_t>& of) {
  std::string text;
  for (const std::int64_t i : of) text += cat(text.empty() ? "[" : ", ", i);
  return text.empty() ? "[]" : text + "]";
}

std::vector<std::int64_t> place_of(std::int64_t element, const std::vector<std::int64_t>& dims) {
  std::vector<std::int64_t> at(dims.size());
  for (std::size_t d = dims.size(); d-- > 0;) {
    at[d] = element % dims[d];
    element /= dims[d];
  }
  return at;
}

/// Elements as patterns of a type of 16 or 32 bits; wider floats are rounded to float32, the type of every reference.
struct Patterns {
  Dtype type = Dtype::f32;
  std::vector<std::uint32_t> bits;
};
Patterns patterns_of(const io::RawTensor& t, const std::string& name) {
  const std::int64_t n = io::element_count(t.dims);
  if (n < 0 || n * io::bytes_of(t.type) != static_cast<std::int64_t>(t.bytes.size())) throw InvalidArgument(cat(name, " has shape ", indices(t.dims), " and ", t.bytes.size(), " bytes, which do not agree"));
  Patterns out;
  out.bits.resize(static_cast<std::size_t>(n));
  if (t.type == ElementType::f16 || t.type == ElementType::bf16) {
    out.type = t.type == ElementType::f16 ? Dtype::f16 : Dtype::bf16;
    for (std::size_t i = 0; i < out.bits.size(); ++i) {
      std::uint16_t word = 0;
      std::memcpy(&word, t.bytes.data() + i * 2, 2);
      out.bits[i] = word;
    }
    return out;
  }
  if (!io::is_float(t.type)) throw InvalidArgument(cat(name, " is an array of ", io::name_of(t.type), ", must be F32, F16, BF16 or F64"));
  const NamedTensor floats = io::to_floats(t, name);
  for (std::size_t i = 0; i < out.bits.size(); ++i) out.bits[i] = num::bits_of(floats.values[i]);
  return out;
}

/// Patterns as integers in the order of their numbers, so that neighbours differ by 1; -0 and +0 are equal.
std::int64_t ordered(Dtype type, std::uint32_t bits) {
  const std::uint32_t sign = type == Dtype::f32 ? 0x80000000U : 0x8000U;
  const auto magnitude = static_cast<std::int64_t>(bits & (sign - 1));
  return (bits & sign) != 0 ? -magnitude : magnitude;
}

/// Rows [first, first + count) of axis 2 of both arrays of shape dims.
Difference compare_floats(std::string stage, std::string name, std::span<const float> want, const Patterns& got, const std::vector<std::int64_t>& dims) {
  Difference d{.stage = std::move(stage), .name = std::move(name), .elements = static_cast<std::int64_t>(want.size())};
  std::array<std::int64_t, kDistances.size()> histogram{};
  std::int64_t nans = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const std::uint32_t expected = num::encode(got.type, want[i]), found = got.bits[i];
    const float x = num::decode(got.type, expected), y = num::decode(got.type, found);
    if (expected != found) {
      if (d.different++ == 0) {
        d.first = place_of(static_cast<std::int64_t>(i), dims);
        d.expected = static_cast<double>(x);
        d.got = static_cast<double>(y);
      }
    }
    if (num::is_nan(x) || num::is_nan(y)) {
      nans += 1;
      continue;
    }
    const std::int64_t distance = std::abs(ordered(got.type, expected) - ordered(got.type, found));
    histogram[static_cast<std::size_t>(std::ranges::lower_bound(kUpTo, distance) - kUpTo.begin())] += 1;
    d.max_ulp = std::max(d.max_ulp, distance);
    const double apart = std::abs(static_cast<double>(x) - static_cast<double>(y));
    if (std::isfinite(apart)) d.max_abs = std::max(d.max_abs, apart);
    else if (expected != found) d.max_abs = apart;
  }
  if (d.different == 0) return d;
  for (std::size_t i = 0; i < histogram.size(); ++i)
    if (histogram[i] > 0) d.ulp.emplace_back(kDistances[i], histogram[i]);
  if (nans > 0) d.ulp.emplace_back("NaN", nans);
  return d;
}

Difference wrong_shape(std::string stage, std::string name, const NamedTensor& want, const std::vector<std::int64_t>& dims, const std::vector<std::int64_t>& must) {
  const auto n = static_cast<std::int64_t>(want.values.size());
  return {.stage = std::move(stage), .name = std::move(name), .elements = n, .different = n, .note = cat("has shape ", indices(dims), ", must have ", indices(must))};
}

/// Tokens [first, first + count) of an array [layers, heads, tokens, dim].
template <class T>
std::vector<T> tokens_of(const std::vector<T>& values, const std::vector<std::int64_t>& dims, std::int64_t first, std::int64_t count) {
  std::vector<T> out;
  for (std::int64_t row = 0; row < dims[0] * dims[1]; ++row) {
    const auto from = values.begin() + (row * dims[2] + first) * dims[3];
    out.insert(out.end(), from, from + count * dims[3]);
  }
  return out;
}

struct Comparison {
  const VectorCase& of;
  const KernelResults& given;
  Check found{};

  void buffers(std::size_t index) {
    const VectorStage& stage = of.stages[index];
    const auto mine = given.stages.find(stage.name);
    if (mine == given.stages.end()) {
      found.not_given.push_back(cat("buffers of stage ", stage.name));
      return;
    }
    for (const auto& [name, bytes] : mine->second)
      if (std::ranges::find(stage.buffers, name, &StoredBuffer::name) == stage.buffers.end()) throw InvalidArgument(cat("buffer ", name, " is not part of stage ", stage.name, " of the case"));
    for (const StoredBuffer& b : stage.buffers) {
      const auto it = mine->second.find(b.name);
      if (it == mine->second.end()) {
        found.not_given.push_back(cat(stage.name, "/", b.name));
        continue;
      }
      Difference d{.stage = stage.name, .name = b.name, .elements = static_cast<std::int64_t>(b.bytes.size())};
      if (it->second.size() != b.bytes.size()) {
        d.different = d.elements;
        d.note = cat("has ", it->second.size(), " bytes, must have ", b.bytes.size());
      } else {
        for (std::size_t i = 0; i < b.bytes.size(); ++i)
          if (b.bytes[i] != it->second[i] && d.different++ == 0) {
            d.first = {static_cast<std::int64_t>(i)};
            d.expected = std::to_integer<int>(b.bytes[i]);
            d.got = std::to_integer<int>(it->second[i]);
          }
      }
      found.differences.push_back(std::move(d));
    }
  }

  void tokens(const io::RawTensor& mine, const char* name, std::int64_t given_from, std::int64_t from, std::int64_t count, const char* stage) {
    const NamedTensor& want = of.outputs.at("out");
    std::vector<std::int64_t> dims = want.dims, part = want.dims;
    dims[2] -= given_from;
    part[2] = count;
    if (mine.dims != dims) {
      if (from == given_from) found.differences.push_back(wrong_shape(stage, name, want, mine.dims, dims));
      return;
    }
    Patterns got = patterns_of(mine, name);
    got.bits = tokens_of(got.bits, dims, from - given_from, count);
    Difference d = compare_floats(stage, name, tokens_of(want.values, want.dims, from, count), got, part);
    if (!d.first.empty()) d.first[2] += from - given_from;  // as the array that was handed over counts tokens
    found.differences.push_back(std::move(d));
  }

  void whole_tensors(const char* stage) {
    for (const auto& [name, want] : of.outputs) {
      const auto mine = given.tensors.find(name);
      if (mine == given.tensors.end()) found.not_given.push_back(name);
      else if (mine->second.dims != want.dims) found.differences.push_back(wrong_shape(stage, name, want, mine->second.dims, want.dims));
      else found.differences.push_back(compare_floats(stage, name, want.values, patterns_of(mine->second, name), want.dims));
    }
  }

  Check run() {
    if (of.kind == VectorKind::conversion) {
      whole_tensors("weights");
      return std::move(found);
    }
    buffers(0);
    if (of.kind == VectorKind::speculation) {
      whole_tensors("verifying");
      buffers(1);
      return std::move(found);
    }
    const std::int64_t all = of.outputs.at("out").dims[2];
    const auto out = given.tensors.find("out"), decode = given.tensors.find("decode");
    if (out != given.tensors.end()) {
      tokens(out->second, "out", 0, 0, of.prompt, "attention of the prompt");
      if (all > of.prompt) tokens(out->second, "out", 0, of.prompt, all - of.prompt, "attention of decoding");
    }
    if (decode != given.tensors.end()) tokens(decode->second, "decode", of.prompt, of.prompt, all - of.prompt, "attention of decoding");
    if (out == given.tensors.end() && decode == given.tensors.end()) found.not_given.emplace_back("out");
    buffers(1);
    return std::move(found);
  }
};

std::vector<std::string> names_of_tensors(const VectorCase& c) {
  if (c.kind == VectorKind::cache || c.kind == VectorKind::group) return {"out", "decode"};
  std::vector<std::string> names;
  for (const auto& [name, tensor] : c.outputs) names.push_back(name);
  return names;
}

std::vector<std::byte> bytes_of_file(const fs::path& path) {
  io::RawTensor raw = io::read_npy(path.string());
  return std::move(raw.bytes);
}

}  // namespace

bool Check::equal() const {
  return !differences.empty() && std::ranges::all_of(differences, &Difference::equal);
}

const Difference* Check::first() const {
  const auto it = std::ranges::find_if_not(differences, &Difference::equal);
  return it == differences.end() ? nullptr : &*it;
}

KernelResults read_results(const VectorCase& of, const fs::path& folder) {
  if (!fs::is_directory(folder)) throw IoError(cat(folder.string(), ": not a folder, must hold what your kernel made of the case"));
  KernelResults results;
  std::string looked_for;
  const std::string before = of.kind == VectorKind::conversion ? "converted_" : "";  // as a case's own files are called
  for (const std::string& name : names_of_tensors(of)) {
    const fs::path plain = folder / (before + name + ".npy"), coded = folder / (before + name + ".bf16.npy");
    looked_for += cat(looked_for.empty() ? "" : ", ", plain.filename().string());
    if (fs::exists(plain)) results.tensors[name] = io::read_npy(plain.string());
    if (!fs::exists(coded)) continue;
    if (fs::exists(plain)) throw IoError(cat(folder.string(), ": holds ", plain.filename().string(), " and ", coded.filename().string(), ", must hold one of the two"));
    io::RawTensor raw = io::read_npy(coded.string());
    if (raw.type != ElementType::u16) throw IoError(cat(coded.string(), ": elements are ", io::name_of(raw.type), ", must be U16: patterns of bf16"));
    raw.type = ElementType::bf16;
    results.tensors[name] = std::move(raw);
  }
  for (const VectorStage& stage : of.stages) {
    const fs::path whole_stage = folder / cat("buffers_", stage.name, ".npy");
    looked_for += cat(", ", whole_stage.filename().string());
    std::map<std::string, std::vector<std::byte>> mine;
    if (fs::exists(whole_stage)) {
      const std::vector<std::byte> bytes = bytes_of_file(whole_stage);
      std::size_t wanted = 0;
      for (const StoredBuffer& b : stage.buffers) wanted += b.bytes.size();
      if (bytes.size() != wanted) throw IoError(cat(whole_stage.string(), ": has ", bytes.size(), " bytes, must have ", wanted, " as case.json lays them out"));
      auto from = bytes.begin();
      for (const StoredBuffer& b : stage.buffers) {
        const auto to = from + static_cast<std::ptrdiff_t>(b.bytes.size());
        mine[b.name].assign(from, to);
        from = to;
      }
    }
    for (const StoredBuffer& b : stage.buffers)
      if (const fs::path path = folder / stage.name / (b.name + ".npy"); fs::exists(path)) mine[b.name] = bytes_of_file(path);
    if (!mine.empty()) results.stages[stage.name] = std::move(mine);
  }
  if (results.tensors.empty() && results.stages.empty()) throw IoError(cat(folder.string(), ": holds nothing to compare, must hold any of ", looked_for));
  return results;
}

Check check_results(const VectorCase& expected, const KernelResults& got) {
  const std::vector<std::string> names = names_of_tensors(expected);
  for (const auto& [name, tensor] : got.tensors)
    if (std::ranges::find(names, name) == names.end()) throw InvalidArgument(cat("array ", name, " is not an output of the case"));
  for (const auto& [name, buffers] : got.stages)
    if (std::ranges::find(expected.stages, name, &VectorStage::name) == expected.stages.end()) throw InvalidArgument(cat("stage ", name, " is not one of the case"));
  Check check = Comparison{.of = expected, .given = got}.run();
  if (check.differences.empty()) throw InvalidArgument("the kernel handed over nothing to compare");
  return check;
}

Json describe(const VectorCase& of, const Check& check) {
  const auto number = [](double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); };
  Json rows = Json::array();
  for (const Difference& d : check.differences) {
    Json ulp = Json::object();
    for (const auto& [distance, count] : d.ulp) ulp[distance] = count;
    const bool some = !d.first.empty();
    rows.push_back({{"stage", d.stage}, {"name", d.name}, {"elements", d.elements}, {"different", d.different}, {"first", some ? Json(d.first) : Json(nullptr)},
                    {"expected", some ? number(d.expected) : Json(nullptr)}, {"got", some ? number(d.got) : Json(nullptr)}, {"max_ulp", d.max_ulp}, {"max_abs", number(d.max_abs)},
                    {"ulp", ulp}, {"note", d.note}});
  }
  const Difference* first = check.first();
  return {{"case", of.name}, {"method", of.choice.canonical()}, {"equal", check.equal()}, {"first", first == nullptr ? Json(nullptr) : Json(cat(first->stage, "/", first->name))},
          {"differences", rows}, {"not_given", check.not_given}, {"provenance", "counted"}};
}

std::string spell(const VectorCase& of, const Check& check) {
  std::string text = cat(of.choice.canonical(), ", ", of.name, ": ", check.equal() ? "every bit equal" : "NOT equal", "\n");
  for (const Difference& d : check.differences) {
    text += cat("  ", d.stage, "/", d.name, ": ");
    if (!d.note.empty()) text += d.note;
    else if (d.equal()) text += cat(d.elements, " elements, all bits equal");
    else text += cat(d.different, " of ", d.elements, " elements differ", d.ulp.empty() ? std::string() : cat(", at most ", d.max_ulp, " ULP, ", d.max_abs, " absolute"), "; first at ", indices(d.first), ": ",
                     d.expected, " expected, ", d.got, " found");
    text += "\n";
  }
  if (const Difference* first = check.first(); first != nullptr) {
    text += cat("  look at ", first->stage, "/", first->name, " first");
    std::string histogram;
    for (const auto& [distance, count] : first->ulp) histogram += cat(histogram.empty() ? "; its elements by ULP: " : ", ", distance, ": ", count);
    text += histogram + "\n";
  }
  std::string missing;
  for (const std::string& name : check.not_given) missing += cat(missing.empty() ? "  not given: " : ", ", name);
  return missing.empty() ? text : text + missing + "\n";
}

}  // namespace kvatlas::answers
