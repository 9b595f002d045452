// The 128-bit hash that names configurations and points: MurmurHash3 x64 128, and its prefix form for points.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::sweep {

/// A 128-bit name. Bytes are those of MurmurHash3: h1, then h2, each little-endian.
struct Key {
  std::uint64_t h1 = 0, h2 = 0;
  friend auto operator<=>(const Key&, const Key&) = default;
};

/// MurmurHash3_x64_128 of bytes. source: Austin Appleby, SMHasher, MurmurHash3.cpp (public domain)
Key murmur3(const void* bytes, std::size_t size, std::uint32_t seed = 0);
inline Key murmur3(std::string_view text) { return murmur3(text.data(), text.size()); }

/// 32 lower-case hex digits, in byte order; the form that queries print.
std::string hex(const Key& key);
std::optional<Key> parse_key(std::string_view hex_digits);

/// The 16 bytes of a key as the store keeps them.
void to_bytes(const Key& key, unsigned char (&out)[16]);
Key from_bytes(const unsigned char* bytes);

/// Keys of the points of one configuration: murmur3 of its 16-byte key followed by two 64-bit little-endian numbers
/// (context and batch, or the two halves of a workload's key). The first block is mixed once, a point costs the second.
class PointHasher {
 public:
  explicit PointHasher(const Key& configuration);
  Key operator()(std::uint64_t a, std::uint64_t b) const;

 private:
  Key after_first_block_;
};

/// A set of keys: open addressing, filled once, read by many threads.
class KeySet {
 public:
  void reserve(std::size_t keys);
  void insert(const Key& key);
  bool contains(const Key& key) const;
  std::size_t size() const { return size_; }

 private:
  void grow(std::size_t slots);
  std::vector<Key> slots_;  // the zero key marks an empty slot; whether it is a member is has_zero_
  std::size_t size_ = 0;
  bool has_zero_ = false;
};

}  // namespace kvatlas::sweep
