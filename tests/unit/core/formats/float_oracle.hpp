// What the float formats mean, written from their definition in long double; shares nothing with core/formats.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace oracle {

struct Format {
  int mantissa_bits;
  int bias;
  std::uint32_t largest;  // code of the largest finite magnitude
  bool saturates;         // else the code above the largest is infinity
};

/// (-1)^0 * 2^(1-bias) * m/2^M for e = 0, else 2^(e-bias) * (1 + m/2^M).
inline long double magnitude(const Format& f, std::uint32_t code) {
  const std::uint32_t fields = 1U << f.mantissa_bits;
  const int e = static_cast<int>(code / fields);
  const long double m = static_cast<long double>(code % fields) / static_cast<long double>(fields);
  return e == 0 ? std::ldexp(m, 1 - f.bias) : std::ldexp(1.0L + m, e - f.bias);
}

/// The code of the nearest magnitude, of two equally near ones the even code; by search in the table of all of them.
class Encoder {
 public:
  explicit Encoder(const Format& format) {
    const std::uint32_t last = format.saturates ? format.largest : format.largest + 1;  // infinity stands where 2^(emax+1) is
    for (std::uint32_t code = 0; code <= last; ++code) table_.push_back(magnitude(format, code));
  }
  std::uint32_t operator()(float x) const {
    const long double v = std::fabs(static_cast<long double>(x));
    if (v >= table_.back()) return static_cast<std::uint32_t>(table_.size() - 1);
    std::size_t low = 0;
    std::size_t high = table_.size() - 1;
    while (high - low > 1) {
      const std::size_t middle = (low + high) / 2;
      (table_[middle] <= v ? low : high) = middle;
    }
    const long double below = v - table_[low];
    const long double above = table_[high] - v;
    if (below != above) return static_cast<std::uint32_t>(below < above ? low : high);
    return static_cast<std::uint32_t>(low % 2 == 0 ? low : high);
  }
  const std::vector<long double>& table() const { return table_; }

 private:
  std::vector<long double> table_;
};

inline std::uint32_t bits(float x) {
  std::uint32_t u = 0;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
inline float from_bits(std::uint32_t u) {
  float x = 0.0F;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

/// Floats at which rounding to `encoder`'s format can go wrong: every magnitude, every midpoint, and their neighbours.
inline std::vector<float> hard_floats(const Encoder& encoder) {
  std::vector<float> out;
  const auto& table = encoder.table();
  for (std::size_t i = 0; i < table.size(); ++i) {
    const long double next = i + 1 < table.size() ? table[i + 1] : table[i] * 2.0L;
    for (const long double v : {table[i], (table[i] + next) / 2.0L}) {
      const auto x = static_cast<float>(v);
      for (const float y : {std::nextafter(x, 0.0F), x, std::nextafter(x, INFINITY)}) {
        out.push_back(y);
        out.push_back(-y);
      }
    }
  }
  return out;
}

}  // namespace oracle
