#include "sweeps/hash128.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace kvatlas::sweep {

namespace {

constexpr std::uint64_t kC1 = 0x87c37b91114253d5ULL;
constexpr std::uint64_t kC2 = 0x4cf5ad432745937fULL;

std::uint64_t load64(const unsigned char* p) {
  std::uint64_t v = 0;
  for (int i = 7; i >= 0; --i) v = (v << 8) | p[i];
  return v;
}

std::uint64_t scramble1(std::uint64_t k) { return std::rotl(k * kC1, 31) * kC2; }
std::uint64_t scramble2(std::uint64_t k) { return std::rotl(k * kC2, 33) * kC1; }

void mix_block(Key& h, std::uint64_t k1, std::uint64_t k2) {
  h.h1 ^= scramble1(k1);
  h.h1 = (std::rotl(h.h1, 27) + h.h2) * 5 + 0x52dce729;
  h.h2 ^= scramble2(k2);
  h.h2 = (std::rotl(h.h2, 31) + h.h1) * 5 + 0x38495ab5;
}

std::uint64_t final_mix(std::uint64_t k) {
  k = (k ^ (k >> 33)) * 0xff51afd7ed558ccdULL;
  k = (k ^ (k >> 33)) * 0xc4ceb9fe1a85ec53ULL;
  return k ^ (k >> 33);
}

Key finish(Key h, std::uint64_t size) {
  h.h1 ^= size;
  h.h2 ^= size;
  h.h1 += h.h2;
  h.h2 += h.h1;
  h.h1 = final_mix(h.h1);
  h.h2 = final_mix(h.h2);
  h.h1 += h.h2;
  h.h2 += h.h1;
  return h;
}

}  // namespace

Key murmur3(const void* bytes, std::size_t size, std::uint32_t seed) {
  const auto* p = static_cast<const unsigned char*>(bytes);
  Key h{seed, seed};
  for (std::size_t block = 0; block < size / 16; ++block) mix_block(h, load64(p + block * 16), load64(p + block * 16 + 8));
  unsigned char tail[16] = {};
  if (size % 16 > 0) {  // a tail of zeros scrambles to zero, so padding leaves the half without bytes unchanged
    std::memcpy(tail, p + size / 16 * 16, size % 16);
    h.h2 ^= scramble2(load64(tail + 8));
    h.h1 ^= scramble1(load64(tail));
  }
  return finish(h, size);
}

void to_bytes(const Key& key, unsigned char (&out)[16]) {
  for (std::size_t i = 0; i < 8; ++i) {
    out[i] = static_cast<unsigned char>(key.h1 >> (8 * i));
    out[8 + i] = static_cast<unsigned char>(key.h2 >> (8 * i));
  }
}

Key from_bytes(const unsigned char* bytes) { return {load64(bytes), load64(bytes + 8)}; }

std::string hex(const Key& key) {
  constexpr char digits[] = "0123456789abcdef";
  unsigned char bytes[16];
  to_bytes(key, bytes);
  std::string text;
  for (const unsigned char b : bytes) {
    text += digits[b >> 4];
    text += digits[b & 15];
  }
  return text;
}

std::optional<Key> parse_key(std::string_view hex_digits) {
  if (hex_digits.size() != 32) return std::nullopt;
  unsigned char bytes[16] = {};
  for (std::size_t i = 0; i < 32; ++i) {
    const char c = hex_digits[i];
    int v = 0;
    if (c >= '0' && c <= '9') v = c - '0';
    else if (c >= 'a' && c <= 'f') v = c - 'a' + 10;
    else return std::nullopt;
    bytes[i / 2] = static_cast<unsigned char>((bytes[i / 2] << 4) | v);
  }
  return from_bytes(bytes);
}

PointHasher::PointHasher(const Key& configuration) { mix_block(after_first_block_, configuration.h1, configuration.h2); }

Key PointHasher::operator()(std::uint64_t a, std::uint64_t b) const {
  Key h = after_first_block_;
  mix_block(h, a, b);
  return finish(h, 32);
}

void KeySet::grow(std::size_t slots) {
  std::vector<Key> old(slots);
  old.swap(slots_);
  size_ = has_zero_ ? 1 : 0;
  for (const Key& k : old)
    if (k != Key{}) insert(k);
}

void KeySet::reserve(std::size_t keys) {
  const std::size_t slots = std::bit_ceil(std::max<std::size_t>(16, keys * 2));
  if (slots > slots_.size()) grow(slots);
}

void KeySet::insert(const Key& key) {
  if (key == Key{}) {
    if (!has_zero_) ++size_;
    has_zero_ = true;
    return;
  }
  if ((size_ + 1) * 2 > slots_.size()) grow(std::max<std::size_t>(16, slots_.size() * 2));
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = key.h1 & mask;
  while (slots_[at] != Key{}) {
    if (slots_[at] == key) return;
    at = (at + 1) & mask;
  }
  slots_[at] = key;
  ++size_;
}

bool KeySet::contains(const Key& key) const {
  if (key == Key{}) return has_zero_;
  if (slots_.empty()) return false;
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t at = key.h1 & mask; slots_[at] != Key{}; at = (at + 1) & mask)
    if (slots_[at] == key) return true;
  return false;
}

}  // namespace kvatlas::sweep
