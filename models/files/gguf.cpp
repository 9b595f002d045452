#include "models/files/gguf.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <unordered_set>

#include "core/errors.hpp"
#include "models/files/printable.hpp"

static_assert(std::endian::native == std::endian::little);

namespace kvatlas::models {

namespace {

constexpr std::size_t kMagicBytes = 4;
constexpr std::uint64_t kMaxKeyBytes = 65535;     // as the format says
constexpr std::uint64_t kMaxNameBytes = 1024;     // of a tensor; the format says 64, converters write more
constexpr std::uint32_t kMaxDims = 4;             // as in ggml
constexpr std::uint64_t kMaxAlignment = 1 << 20;  // files use 32 to 4096
constexpr int kMaxNesting = 4;                    // of arrays
constexpr std::int64_t kMaxElements = std::int64_t{1} << 62;

/// Bytes of a value of fixed size, 0 for texts and arrays.
std::uint64_t fixed_bytes(GgufKind kind) {
  switch (kind) {
    case GgufKind::u8:
    case GgufKind::i8:
    case GgufKind::boolean: return 1;
    case GgufKind::u16:
    case GgufKind::i16: return 2;
    case GgufKind::u32:
    case GgufKind::i32:
    case GgufKind::f32: return 4;
    case GgufKind::u64:
    case GgufKind::i64:
    case GgufKind::f64: return 8;
    case GgufKind::text:
    case GgufKind::array: break;
  }
  return 0;
}
/// The fewest bytes that one value takes in the file.
std::uint64_t least_bytes(GgufKind kind) { return kind == GgufKind::text ? 8 : kind == GgufKind::array ? 12 : fixed_bytes(kind); }

struct TypeRow {
  std::uint32_t number;
  TensorType type;
};
constexpr std::array<TypeRow, 11> kTypes{{{0, TensorType::f32}, {1, TensorType::f16}, {2, TensorType::q4_0}, {3, TensorType::q4_1},
    {6, TensorType::q5_0}, {7, TensorType::q5_1}, {8, TensorType::q8_0}, {12, TensorType::q4_k}, {13, TensorType::q5_k},
    {14, TensorType::q6_k}, {30, TensorType::bf16}}};
// Types of ggml that are not read, so that a refusal can name them.
struct OtherType {
  std::uint32_t number;
  const char* name;
};
constexpr std::array<OtherType, 22> kOtherTypes{{{9, "Q8_1"}, {10, "Q2_K"}, {11, "Q3_K"}, {15, "Q8_K"}, {16, "IQ2_XXS"}, {17, "IQ2_XS"},
    {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"}, {23, "IQ4_XS"}, {24, "I8"}, {25, "I16"}, {26, "I32"},
    {27, "I64"}, {28, "F64"}, {29, "IQ1_M"}, {34, "TQ1_0"}, {35, "TQ2_0"}, {39, "MXFP4"}, {40, "NVFP4"}}};

/// Walks the file from front to back; no step leaves it.
class Cursor {
 public:
  Cursor(std::span<const std::byte> file, std::string_view name) : file_(file), name_(name) {}

  std::uint64_t left() const { return file_.size() - at_; }
  std::size_t at() const { return at_; }
  [[noreturn]] void fail(std::string_view why) const { throw IoError(cat(name_, ": ", why)); }

  std::span<const std::byte> take(std::uint64_t n, std::string_view what) {
    if (n > left()) fail(cat("cut off: ", what, " at byte ", at_, " needs ", n, " bytes, ", left(), " are left"));
    const auto out = file_.subspan(at_, static_cast<std::size_t>(n));
    at_ += static_cast<std::size_t>(n);
    return out;
  }
  template <class T>
  T value(std::string_view what) {
    T out;
    std::memcpy(&out, take(sizeof(T), what).data(), sizeof(T));
    return out;
  }
  std::string_view text(std::uint64_t limit, std::string_view what) {
    const auto size = value<std::uint64_t>(what);
    if (size > limit) fail(cat(what, " at byte ", at_ - 8, " announces ", size, " bytes, must be at most ", limit));
    const auto bytes = take(size, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  GgufKind kind() {
    const auto number = value<std::uint32_t>("a value type");
    if (number > static_cast<std::uint32_t>(GgufKind::f64)) fail(cat("value type at byte ", at_ - 4, " is ", number, ", must be at most 12"));
    return static_cast<GgufKind>(number);
  }
  /// Steps over `count` values of one kind.
  void skip(GgufKind kind, std::uint64_t count, int depth) {
    if (count > left() / least_bytes(kind))
      fail(cat("an array at byte ", at_, " announces ", count, " elements, more than the ", left(), " bytes left can hold"));
    if (const std::uint64_t bytes = fixed_bytes(kind); bytes > 0) {
      take(count * bytes, "a value");
      return;
    }
    if (kind == GgufKind::array && depth > kMaxNesting) fail(cat("arrays at byte ", at_, " are nested deeper than ", kMaxNesting, " levels"));
    for (std::uint64_t i = 0; i < count; ++i) {
      if (kind == GgufKind::text) {
        text(file_.size(), "a text");
      } else {
        const GgufKind element = this->kind();
        skip(element, value<std::uint64_t>("an array's length"), depth + 1);
      }
    }
  }

 private:
  std::span<const std::byte> file_;
  std::string_view name_;
  std::size_t at_ = 0;
};

GgufValue read_value(Cursor& cursor, std::span<const std::byte> file) {
  GgufValue out;
  out.key = cursor.text(kMaxKeyBytes, "a metadata key");
  out.kind = out.element = cursor.kind();
  if (out.kind == GgufKind::array) {
    out.element = cursor.kind();
    out.count = cursor.value<std::uint64_t>("an array's length");
  }
  const std::size_t start = cursor.at();
  cursor.skip(out.element, out.count, 2);
  out.bytes = file.subspan(start, cursor.at() - start);
  return out;
}

struct PlacedInfo {
  TensorInfo info;
  std::uint64_t offset = 0, size = 0;
};

PlacedInfo read_tensor(Cursor& cursor) {
  PlacedInfo out;
  out.info.name = cursor.text(kMaxNameBytes, "a tensor name");
  const std::string where = cat("tensor ", printable(out.info.name));
  const auto dims = cursor.value<std::uint32_t>("a number of dimensions");
  if (dims > kMaxDims) cursor.fail(cat(where, " has ", dims, " dimensions, must be at most ", kMaxDims));
  std::int64_t elements = 1;
  for (std::uint32_t d = 0; d < dims; ++d) {
    const auto length = cursor.value<std::uint64_t>("a dimension");
    if (length == 0 || length > static_cast<std::uint64_t>(kMaxElements / elements))
      cursor.fail(cat(where, ": dimension ", d, " is ", length, ", must be positive and leave at most 2^62 elements"));
    elements *= static_cast<std::int64_t>(length);
    out.info.shape.insert(out.info.shape.begin(), static_cast<std::int64_t>(length));  // the file names the fastest first
  }
  const auto number = cursor.value<std::uint32_t>("a tensor type");
  const auto* row = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeRow& r) { return r.number == number; });
  if (row == kTypes.end()) {
    const auto* other = std::find_if(kOtherTypes.begin(), kOtherTypes.end(), [&](const OtherType& r) { return r.number == number; });
    const std::string allowed = "must be one of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";
    if (other == kOtherTypes.end()) cursor.fail(cat(where, " has type ", number, ", ", allowed));
    throw Unsupported(cat(where, " has type ", other->name, ", ", allowed));
  }
  out.info.type = row->type;
  out.offset = cursor.value<std::uint64_t>("a tensor offset");
  const BlockShape block = block_shape(out.info.type);
  if (out.info.columns() % block.values != 0)
    cursor.fail(cat(where, " has rows of ", out.info.columns(), " values, must be a multiple of ", block.values, " for ", name_of(out.info.type)));
  const std::int64_t blocks = elements / block.values;
  if (blocks > kMaxElements / block.bytes) cursor.fail(cat(where, " is larger than any file"));
  out.size = static_cast<std::uint64_t>(blocks * block.bytes);
  return out;
}

void place(std::vector<PlacedInfo>& tensors, std::span<const std::byte> file, std::size_t header, Gguf& out) {
  const std::uint64_t past = header % out.alignment;
  const std::uint64_t start = header + (past == 0 ? 0 : out.alignment - past);
  const std::uint64_t data = start > file.size() ? 0 : file.size() - start;
  for (PlacedInfo& t : tensors) {
    const auto fail = [&](std::string_view why) { throw IoError(cat(out.name, ": tensor ", printable(t.info.name), " ", why)); };
    if (t.offset % out.alignment != 0) fail(cat("lies at offset ", t.offset, ", must be a multiple of the alignment (", out.alignment, ")"));
    if (t.offset > data || t.size > data - t.offset)
      fail(cat("needs ", t.size, " bytes from offset ", t.offset, ", the file holds ", data, " bytes of data (cut off?)"));
    t.info.bytes = file.subspan(static_cast<std::size_t>(start + t.offset), static_cast<std::size_t>(t.size));
  }
  std::vector<const PlacedInfo*> order;
  for (const PlacedInfo& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const PlacedInfo* a, const PlacedInfo* b) { return a->offset < b->offset; });
  for (std::size_t i = 1; i < order.size(); ++i)
    if (order[i]->offset - order[i - 1]->offset < order[i - 1]->size)
      throw IoError(cat(out.name, ": tensors ", printable(order[i - 1]->info.name), " and ", printable(order[i]->info.name), " overlap"));
  for (PlacedInfo& t : tensors) out.tensors.push_back(std::move(t.info));
}

}  // namespace

bool is_gguf(std::span<const std::byte> file) { return file.size() >= kMagicBytes && std::memcmp(file.data(), "GGUF", kMagicBytes) == 0; }

Gguf parse_gguf(std::span<const std::byte> file, std::string_view name) {
  Gguf out;
  out.name = name;
  if (!is_gguf(file)) throw IoError(cat(name, ": not a GGUF file, it must start with GGUF"));
  Cursor cursor(file, name);
  cursor.take(kMagicBytes, "the magic");
  out.version = cursor.value<std::uint32_t>("the version");
  if (out.version != 0 && (out.version & 0xFFFFU) == 0) throw Unsupported(cat(name, ": the file is big-endian, only little-endian files are read"));
  if (out.version == 1) throw Unsupported(cat(name, ": GGUF version is 1, must be 2 or 3"));
  if (out.version != 2 && out.version != 3) cursor.fail(cat("GGUF version is ", out.version, ", must be 2 or 3"));

  const auto tensors = cursor.value<std::uint64_t>("the number of tensors");
  const auto entries = cursor.value<std::uint64_t>("the number of metadata entries");
  constexpr std::uint64_t kLeastEntry = 8 + 4 + 1, kLeastTensor = 8 + 4 + 4 + 8;
  if (entries > cursor.left() / kLeastEntry) cursor.fail(cat("announces ", entries, " metadata entries, more than its ", file.size(), " bytes can hold"));
  if (tensors > cursor.left() / kLeastTensor) cursor.fail(cat("announces ", tensors, " tensors, more than its ", file.size(), " bytes can hold"));
  for (std::uint64_t i = 0; i < entries; ++i) {
    out.metadata.push_back(read_value(cursor, file));
    if (!out.by_key.emplace(out.metadata.back().key, out.metadata.size() - 1).second)
      cursor.fail(cat("metadata key ", printable(out.metadata.back().key), " is given twice"));
  }
  if (const auto alignment = out.integer("general.alignment")) {
    if (*alignment <= 0 || *alignment > static_cast<std::int64_t>(kMaxAlignment) || !std::has_single_bit(static_cast<std::uint64_t>(*alignment)))
      cursor.fail(cat("general.alignment is ", *alignment, ", must be a power of two of at most ", kMaxAlignment));
    out.alignment = static_cast<std::uint64_t>(*alignment);
  }
  if (out.integer("split.count").value_or(1) > 1)
    throw Unsupported(cat(name, ": one of ", *out.integer("split.count"), " files of a split model; join them with gguf-split --merge"));

  std::vector<PlacedInfo> placed;
  for (std::uint64_t i = 0; i < tensors; ++i) placed.push_back(read_tensor(cursor));
  std::unordered_set<std::string_view> names;
  for (const PlacedInfo& t : placed)
    if (!names.insert(t.info.name).second) cursor.fail(cat("tensor ", printable(t.info.name), " is given twice"));
  place(placed, file, cursor.at(), out);
  return out;
}

}  // namespace kvatlas::models
