#include "sweeps/hash128.hpp"

#include <array>
#include <cstring>

#include "tests/catch.hpp"

using namespace kvatlas::sweep;

TEST_CASE("the hash passes the verification of its publisher", "[unit]") {
  // SMHasher, VerificationTest: keys {}, {0}, {0, 1}, ... under seeds 256 - length; the hash of all hashes starts with
  // 0x6384BA69 for MurmurHash3_x64_128.
  std::array<unsigned char, 256> key{};
  std::array<unsigned char, 256 * 16> hashes{};
  for (std::size_t n = 0; n < 256; ++n) {
    key[n] = static_cast<unsigned char>(n);
    unsigned char bytes[16];
    to_bytes(murmur3(key.data(), n, static_cast<std::uint32_t>(256 - n)), bytes);
    std::memcpy(hashes.data() + n * 16, bytes, 16);
  }
  REQUIRE((murmur3(hashes.data(), hashes.size(), 0).h1 & 0xffffffffU) == 0x6384BA69U);
}

TEST_CASE("single hashes equal those of an independent implementation", "[unit]") {
  // mmh3 5, hash_bytes(text, 0, True)
  REQUIRE(hex(murmur3("")) == "00000000000000000000000000000000");
  REQUIRE(hex(murmur3("a")) == "897859f6655555855a890e51483ab5e6");
  REQUIRE(hex(murmur3("hello")) == "029bbd41b3a7d8cb191dae486a901e5b");
  REQUIRE(hex(murmur3("0123456789abcdef")) == "a7d14acf946de04bda08a7635c5bc387");
  REQUIRE(hex(murmur3("0123456789abcdef0")) == "75c0a58587ae24ebca283131b368fb73");
  REQUIRE(hex(murmur3("The quick brown fox jumps over the lazy dog")) == "6c1b07bc7bbc4be347939ac4a93c437a");
}

TEST_CASE("the key of a point is the hash of its 32 bytes, prefix form or not", "[unit]") {
  const Key configuration = murmur3("{\"gpu\":\"h100-sxm\"}");
  const PointHasher hasher(configuration);
  for (const std::uint64_t context : {0ULL, 1ULL, 32768ULL, ~0ULL})
    for (const std::uint64_t batch : {0ULL, 1ULL, 255ULL}) {
      unsigned char bytes[32];
      unsigned char half[16];
      to_bytes(configuration, half);
      std::memcpy(bytes, half, 16);
      to_bytes(Key{context, batch}, half);
      std::memcpy(bytes + 16, half, 16);
      REQUIRE(hasher(context, batch) == murmur3(bytes, 32));
    }
}

TEST_CASE("keys survive their bytes and their hex digits", "[unit]") {
  const Key k = murmur3("round trip");
  unsigned char bytes[16];
  to_bytes(k, bytes);
  REQUIRE(from_bytes(bytes) == k);
  REQUIRE(parse_key(hex(k)) == k);
  REQUIRE_FALSE(parse_key("12"));
  REQUIRE_FALSE(parse_key("zz1b07bc7bbc4be347939ac4a93c437a"));
}

TEST_CASE("a key set holds what was put in and nothing else", "[unit]") {
  KeySet set;
  REQUIRE_FALSE(set.contains(Key{}));
  for (std::uint64_t i = 0; i < 1000; ++i) set.insert(murmur3(&i, sizeof i));
  set.insert(Key{});
  set.insert(Key{});
  REQUIRE(set.size() == 1001);
  REQUIRE(set.contains(Key{}));
  for (std::uint64_t i = 0; i < 2000; ++i) REQUIRE(set.contains(murmur3(&i, sizeof i)) == (i < 1000));
}
