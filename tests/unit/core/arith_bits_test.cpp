// The canonical functions must return the same bits with every compiler, flag and machine: hashes over many results,
// recorded in tests/hashes/arith.txt by one build, compared by all.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/arith.hpp"
#include "core/arith64.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

class Hash {
 public:
  void add(double x) { add_bits(x); }
  void add(float x) { add_bits(x); }
  std::string hex() const { return fmt::format("{:016x}", value_); }

 private:
  template <class T>
  void add_bits(T x) {  // FNV-1a
    unsigned char bytes[sizeof x];
    std::memcpy(bytes, &x, sizeof x);
    for (const unsigned char b : bytes) value_ = (value_ ^ b) * 1099511628211ULL;
  }
  std::uint64_t value_ = 14695981039346656037ULL;
};

class Points {
 public:
  double operator()(double low, double high) {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return low + (high - low) * (static_cast<double>(state_ >> 11) * 0x1p-53);
  }

 private:
  std::uint64_t state_ = 2024;
};

std::map<std::string, std::string> recorded() {
  std::ifstream file(KVATLAS_SOURCE_DIR "/tests/hashes/arith.txt");
  REQUIRE(file.is_open());
  std::map<std::string, std::string> out;
  std::string name;
  std::string hash;
  while (file >> name >> hash) out[name] = hash;
  return out;
}

}  // namespace

TEST_CASE("the canonical functions return the bits that every build returns", "[unit]") {
  const auto want = recorded();
  const auto compare = [&](const std::string& name, const auto& result) {
    Points point;
    Hash hash;
    for (int i = 0; i < 20'000; ++i) hash.add(result(point));
    CAPTURE(name);
    REQUIRE(want.count(name) == 1);
    CHECK(hash.hex() == want.at(name));
  };
  compare("sin", [](Points& p) { return num::sin(p(-1e8, 1e8)); });
  compare("cos", [](Points& p) { return num::cos(p(-1e4, 1e4)); });
  compare("exp2", [](Points& p) { return num::exp2(p(-1070.0, 1023.0)); });
  compare("exp", [](Points& p) { return num::exp(p(-700.0, 700.0)); });
  compare("log2", [](Points& p) { return num::log2(p(0.0, 100.0)); });
  compare("log", [](Points& p) { return num::log(p(0.0, 100.0)); });
  compare("pow", [](Points& p) {
    const double x = p(0.0, 10.0);
    const double y = p(-100.0, 100.0);
    return num::pow(x, y);
  });
  compare("exp2_f32", [](Points& p) { return num::exp2(static_cast<float>(p(-130.0, 130.0))); });
  compare("log2_f32", [](Points& p) { return num::log2(static_cast<float>(p(0.0, 100.0))); });
  compare("rsqrt_f32", [](Points& p) { return num::rsqrt(static_cast<float>(p(0.0, 100.0))); });

  std::vector<float> a(128);
  std::vector<float> b(128);
  const auto fill = [&](Points& p) {
    for (float& x : a) x = static_cast<float>(p(-4.0, 4.0));
    for (float& x : b) x = static_cast<float>(p(-4.0, 4.0));
  };
  compare("qk_dot_f32", [&](Points& p) { return fill(p), num::qk_dot(a, b); });
  compare("lane_dot_f32", [&](Points& p) { return fill(p), num::lane_dot(a, b); });
  compare("lane_sum_f32", [&](Points& p) { return fill(p), num::lane_sum(a); });
}
