// Quantities that cross public interfaces: a number that carries what it counts.
#pragma once

#include <compare>
#include <concepts>
#include <cstdint>

namespace kvatlas {

/// A number of one kind of thing. Adds, subtracts and compares with its own kind only; scales by plain numbers.
template <class Tag, class Rep>
struct Quantity {
  Rep value{};

  constexpr Quantity() = default;
  template <std::integral N>
  constexpr explicit Quantity(N v) : value(static_cast<Rep>(v)) {}
  template <std::floating_point N>
    requires std::floating_point<Rep>
  constexpr explicit Quantity(N v) : value(static_cast<Rep>(v)) {}

  friend constexpr auto operator<=>(Quantity, Quantity) = default;
  friend constexpr Quantity operator+(Quantity a, Quantity b) { return Quantity(a.value + b.value); }
  friend constexpr Quantity operator-(Quantity a, Quantity b) { return Quantity(a.value - b.value); }
  friend constexpr Quantity operator-(Quantity a) { return Quantity(-a.value); }
  friend constexpr Quantity operator*(Quantity a, Rep b) { return Quantity(a.value * b); }
  friend constexpr Quantity operator*(Rep a, Quantity b) { return Quantity(a * b.value); }
  friend constexpr Quantity operator/(Quantity a, Rep b) { return Quantity(a.value / b); }
  friend constexpr Rep operator/(Quantity a, Quantity b) { return a.value / b.value; }
  constexpr Quantity& operator+=(Quantity b) { return value += b.value, *this; }
  constexpr Quantity& operator-=(Quantity b) { return value -= b.value, *this; }
};

using Tokens = Quantity<struct TokensTag, std::int64_t>;
using Bytes = Quantity<struct BytesTag, std::int64_t>;
using Bits = Quantity<struct BitsTag, std::int64_t>;
using Seconds = Quantity<struct SecondsTag, double>;
using BytesPerSecond = Quantity<struct BytesPerSecondTag, double>;
using Flops = Quantity<struct FlopsTag, double>;
using FlopsPerSecond = Quantity<struct FlopsPerSecondTag, double>;
using Joules = Quantity<struct JoulesTag, double>;

constexpr Seconds operator/(Bytes b, BytesPerSecond r) { return Seconds(static_cast<double>(b.value) / r.value); }
constexpr Seconds operator/(Flops f, FlopsPerSecond r) { return Seconds(f.value / r.value); }

/// Whole bytes that hold `bits`; the one place where a bit count is rounded.
constexpr Bytes to_bytes_ceil(Bits bits) { return Bytes((bits.value + 7) / 8); }

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

inline namespace literals {
constexpr Tokens operator""_tok(unsigned long long v) { return Tokens(v); }
constexpr Bytes operator""_B(unsigned long long v) { return Bytes(v); }
constexpr Bytes operator""_KiB(unsigned long long v) { return Bytes(v << 10); }
constexpr Bytes operator""_MiB(unsigned long long v) { return Bytes(v << 20); }
constexpr Bytes operator""_GiB(unsigned long long v) { return Bytes(v << 30); }
constexpr Bytes operator""_GB(unsigned long long v) { return Bytes(v * 1'000'000'000ULL); }
constexpr BytesPerSecond operator""_GBps(unsigned long long v) { return BytesPerSecond(static_cast<double>(v) * 1e9); }
constexpr BytesPerSecond operator""_GBps(long double v) { return BytesPerSecond(static_cast<double>(v) * 1e9); }
constexpr FlopsPerSecond operator""_TFLOPS(unsigned long long v) { return FlopsPerSecond(static_cast<double>(v) * 1e12); }
constexpr FlopsPerSecond operator""_TFLOPS(long double v) { return FlopsPerSecond(static_cast<double>(v) * 1e12); }
constexpr Seconds operator""_us(unsigned long long v) { return Seconds(static_cast<double>(v) * 1e-6); }
constexpr Seconds operator""_us(long double v) { return Seconds(static_cast<double>(v) * 1e-6); }
constexpr Seconds operator""_ms(unsigned long long v) { return Seconds(static_cast<double>(v) * 1e-3); }
}  // namespace literals

}  // namespace kvatlas
