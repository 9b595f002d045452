#include "core/io/npy.hpp"

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>

#include "core/errors.hpp"
#include "core/io/file.hpp"

namespace kvatlas::io {

namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kHeaderLimit = 65536;  // a header with 64 axes takes under 2 KiB
constexpr std::size_t kAxisLimit = 64;       // as in NumPy

/// The header is a Python dictionary literal with three keys; this reads exactly that and nothing more.
class HeaderReader {
 public:
  HeaderReader(std::string_view text, std::string_view name) : text_(text), name_(name) {}

  struct Header {
    std::string descr;
    bool fortran_order = false;
    std::vector<std::int64_t> shape;
  };

  Header read() {
    std::optional<std::string> descr;
    std::optional<bool> fortran;
    std::optional<std::vector<std::int64_t>> shape;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr" && !descr) {
        descr = string();
      } else if (key == "fortran_order" && !fortran) {
        fortran = boolean();
      } else if (key == "shape" && !shape) {
        shape = tuple();
      } else {
        fail(cat("key '", key, "' is unknown or given twice"));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip();
    if (at_ != text_.size()) fail("text follows the dictionary");
    if (!descr || !fortran || !shape) fail("descr, fortran_order and shape must all be given");
    return {.descr = *descr, .fortran_order = *fortran, .shape = *shape};
  }

 private:
  [[noreturn]] void fail(std::string_view why) const { throw IoError(cat(name_, ": the .npy header is broken: ", why)); }
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }
  bool accept(char c) {
    skip();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(cat("'", c, "' is missing at byte ", at_));
  }
  std::string string() {
    skip();
    if (at_ < text_.size() && text_[at_] == '[') fail("structured types are not read; save one plain array");
    if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) fail(cat("a quoted word is missing at byte ", at_));
    const char quote = text_[at_++];
    const std::size_t end = text_.find(quote, at_);
    if (end == std::string_view::npos) fail("a quoted word does not end");
    const std::string word(text_.substr(at_, end - at_));
    at_ = end + 1;
    return word;
  }
  bool boolean() {
    skip();
    for (const bool value : {true, false}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();
        return value;
      }
    }
    fail("fortran_order must be True or False");
  }
  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> dims;
    expect('(');
    while (!accept(')')) {
      if (dims.size() == kAxisLimit) fail(cat("shape has more than ", kAxisLimit, " axes"));
      dims.push_back(number());
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return dims;
  }
  std::int64_t number() {
    skip();
    std::int64_t n = 0;
    const std::size_t start = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const std::int64_t digit = text_[at_] - '0';
      if (n > (std::numeric_limits<std::int64_t>::max() - digit) / 10) fail("an axis of the shape is too long");
      n = n * 10 + digit;
    }
    if (at_ == start) fail(cat("a length is missing at byte ", at_));
    return n;
  }

  std::string_view text_;
  std::string_view name_;
  std::size_t at_ = 0;
};

ElementType element_type(std::string_view descr, std::string_view name) {
  struct Row {
    std::string_view descr;
    ElementType type;
  };
  static constexpr std::array<Row, 14> kRows{{{"f2", ElementType::f16}, {"f4", ElementType::f32}, {"f8", ElementType::f64},
      {"i1", ElementType::i8}, {"i2", ElementType::i16}, {"i4", ElementType::i32}, {"i8", ElementType::i64},
      {"u1", ElementType::u8}, {"u2", ElementType::u16}, {"u4", ElementType::u32}, {"u8", ElementType::u64},
      {"b1", ElementType::boolean}, {"?", ElementType::boolean}, {"?1", ElementType::boolean}}};
  if (descr.starts_with('>'))
    throw IoError(cat(name, ": the array is big-endian ('", descr, "'); save it little-endian"));
  if (descr == "|V2" || descr == "<V2")
    throw IoError(cat(name, ": type '", descr, "' is how bf16 arrays look in .npy; save it as float32 or safetensors BF16"));
  const std::string_view bare = descr.empty() || std::string_view("<|=").find(descr.front()) == std::string_view::npos
                                    ? descr
                                    : descr.substr(1);
  for (const Row& row : kRows)
    if (row.descr == bare) return row.type;
  throw IoError(cat(name, ": type '", descr, "' is not read; must be f2, f4, f8, an integer of 1 to 8 bytes, or b1"));
}

}  // namespace

RawTensor parse_npy(std::span<const std::byte> file, std::string_view name) {
  const auto byte_at = [&](std::size_t i) { return std::to_integer<std::uint32_t>(file[i]); };
  if (file.size() < 10) throw IoError(cat(name, ": ", file.size(), " bytes are too few for a .npy file (cut off?)"));
  if (std::memcmp(file.data(), kMagic.data(), kMagic.size()) != 0)
    throw IoError(cat(name, ": not a .npy file, it must start with \\x93NUMPY"));
  const std::uint32_t version = byte_at(6);
  if (version < 1 || version > 3 || byte_at(7) != 0)
    throw IoError(cat(name, ": .npy version is ", version, ".", byte_at(7), ", must be 1.0, 2.0 or 3.0"));
  std::size_t start = 10, length = byte_at(8) | byte_at(9) << 8U;
  if (version > 1) {
    if (file.size() < 12) throw IoError(cat(name, ": cut off within the .npy header"));
    start = 12;
    length |= std::size_t{byte_at(10)} << 16U | std::size_t{byte_at(11)} << 24U;
  }
  if (length > kHeaderLimit) throw IoError(cat(name, ": the .npy header is ", length, " bytes, must be at most ", kHeaderLimit));
  if (length > file.size() - start)
    throw IoError(cat(name, ": cut off within the .npy header (", length, " bytes announced, ", file.size() - start, " present)"));
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + start, length);
  const HeaderReader::Header header = HeaderReader(text, name).read();
  if (header.fortran_order)
    throw IoError(cat(name, ": the array is in Fortran order; save numpy.ascontiguousarray(array)"));
  RawTensor out{.type = element_type(header.descr, name), .dims = header.shape, .bytes = {}};
  const std::int64_t n = element_count(out.dims);
  const std::span<const std::byte> data = file.subspan(start + length);
  if (n < 0 || static_cast<std::uint64_t>(n) > data.size() / static_cast<std::uint64_t>(bytes_of(out.type)) ||
      static_cast<std::size_t>(n * bytes_of(out.type)) != data.size())
    throw IoError(cat(name, ": the shape needs ", n < 0 ? std::string("more bytes than a file can hold") : cat(n, " elements of ", bytes_of(out.type), " bytes"),
                      ", the file holds ", data.size(), " bytes of data"));
  out.bytes.assign(data.begin(), data.end());
  return out;
}

RawTensor read_npy(const std::string& path) { return parse_npy(read_file(path), path); }

namespace {

const char* descr_of(ElementType type, std::string_view name) {
  switch (type) {
    case ElementType::f16: return "<f2";
    case ElementType::f32: return "<f4";
    case ElementType::f64: return "<f8";
    case ElementType::i8: return "|i1";
    case ElementType::i16: return "<i2";
    case ElementType::i32: return "<i4";
    case ElementType::i64: return "<i8";
    case ElementType::u8: return "|u1";
    case ElementType::u16: return "<u2";
    case ElementType::u32: return "<u4";
    case ElementType::u64: return "<u8";
    case ElementType::boolean: return "|b1";
    case ElementType::bf16: break;
  }
  throw InvalidArgument(cat(name, " is of type BF16, which .npy files do not have"));
}

}  // namespace

std::vector<std::byte> npy_bytes(const RawTensor& raw, std::string_view name) {
  std::string header = cat("{'descr': '", descr_of(raw.type, name), "', 'fortran_order': False, 'shape': (");
  for (const std::int64_t d : raw.dims) header += cat(d, ", ");
  if (raw.dims.size() > 1) header.erase(header.size() - 2);
  if (raw.dims.size() == 1) header.pop_back();
  header += "), }";
  // NumPy aligns the data to 64 bytes and ends the header with a newline.
  header.append((64 - (10 + header.size() + 1) % 64) % 64, ' ');
  header += '\n';
  if (header.size() > 65535) throw InvalidArgument(cat(name, " has ", raw.dims.size(), " axes, too many for a .npy header"));
  std::string out(kMagic);
  out += {'\x01', '\x00', static_cast<char>(header.size() & 0xFFU), static_cast<char>(header.size() >> 8U)};
  out += header;
  std::vector<std::byte> bytes(out.size() + raw.bytes.size());
  std::memcpy(bytes.data(), out.data(), out.size());
  if (!raw.bytes.empty()) std::memcpy(bytes.data() + out.size(), raw.bytes.data(), raw.bytes.size());
  return bytes;
}

std::vector<std::byte> npy_bytes(const NamedTensor& tensor, std::string_view name) { return npy_bytes(raw_f32(tensor, name), name); }

void write_npy(const std::string& path, const RawTensor& tensor) { write_file(path, npy_bytes(tensor, path)); }
void write_npy(const std::string& path, const NamedTensor& tensor) { write_file(path, npy_bytes(tensor, path)); }

}  // namespace kvatlas::io
