#include "core/formats/int_codes.hpp"

#include "core/errors.hpp"

namespace kvatlas::num {

namespace {

std::size_t stream_bytes(std::size_t count, int bits) {
  return static_cast<std::size_t>(packed_bytes(static_cast<std::int64_t>(count), bits).value);
}

void check_stream(std::size_t codes, int bits, std::size_t bytes) {
  KV_ASSERT(bits >= 1 && bits <= 8, "a code has 1 to 8 bits");
  KV_ASSERT(bytes == stream_bytes(codes, bits), "a packed buffer has exactly the bytes of its codes");
}

void check_planar(std::size_t codes, int bits, std::size_t bytes) {
  KV_ASSERT(bits == 1 || bits == 2 || bits == 4, "planar codes have 1, 2 or 4 bits");
  KV_ASSERT(codes * static_cast<std::size_t>(bits) == bytes * 8, "planar codes fill whole bytes");
}

}  // namespace

void pack(std::span<const std::uint8_t> codes, int bits, std::span<std::byte> out) {
  check_stream(codes.size(), bits, out.size());
  const auto width = static_cast<std::size_t>(bits);
  std::uint32_t seen = 0;
  for (std::size_t first = 0, at = 0; first < codes.size(); first += 8, at += width) {  // eight codes fill `bits` bytes
    const std::size_t count = codes.size() - first < 8 ? codes.size() - first : 8;
    std::uint64_t word = 0;
    for (std::size_t j = 0; j < count; ++j) {
      seen |= codes[first + j];
      word |= static_cast<std::uint64_t>(codes[first + j]) << (width * j);
    }
    const std::size_t bytes = stream_bytes(count, bits);
    for (std::size_t b = 0; b < bytes; ++b) out[at + b] = static_cast<std::byte>((word >> (8 * b)) & 0xFFU);
  }
  KV_ASSERT((seen >> bits) == 0, "a code is below 2^bits");
}

void unpack(std::span<const std::byte> packed, int bits, std::span<std::uint8_t> codes) {
  check_stream(codes.size(), bits, packed.size());
  const auto width = static_cast<std::size_t>(bits);
  const std::uint64_t mask = (std::uint64_t{1} << width) - 1U;
  for (std::size_t first = 0, at = 0; first < codes.size(); first += 8, at += width) {
    const std::size_t count = codes.size() - first < 8 ? codes.size() - first : 8;
    const std::size_t bytes = stream_bytes(count, bits);
    std::uint64_t word = 0;
    for (std::size_t b = 0; b < bytes; ++b) word |= static_cast<std::uint64_t>(packed[at + b]) << (8 * b);
    for (std::size_t j = 0; j < count; ++j) codes[first + j] = static_cast<std::uint8_t>((word >> (width * j)) & mask);
  }
}

void pack_planar(std::span<const std::uint8_t> codes, int bits, std::span<std::byte> out) {
  check_planar(codes.size(), bits, out.size());
  std::uint32_t seen = 0;
  for (std::size_t j = 0; j < out.size(); ++j) {
    std::uint32_t byte = 0;
    for (std::size_t f = 0; f * static_cast<std::size_t>(bits) < 8; ++f) {
      const std::uint32_t code = codes[j + f * out.size()];
      seen |= code;
      byte |= code << (f * static_cast<std::size_t>(bits));
    }
    out[j] = static_cast<std::byte>(byte & 0xFFU);
  }
  KV_ASSERT((seen >> bits) == 0, "a code is below 2^bits");
}

void unpack_planar(std::span<const std::byte> packed, int bits, std::span<std::uint8_t> codes) {
  check_planar(codes.size(), bits, packed.size());
  const std::uint32_t mask = (1U << bits) - 1U;
  for (std::size_t j = 0; j < packed.size(); ++j)
    for (std::size_t f = 0; f * static_cast<std::size_t>(bits) < 8; ++f)
      codes[j + f * packed.size()] =
          static_cast<std::uint8_t>((static_cast<std::uint32_t>(packed[j]) >> (f * static_cast<std::size_t>(bits))) & mask);
}

}  // namespace kvatlas::num
