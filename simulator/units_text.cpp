#include "simulator/units_text.hpp"

#include <charconv>
#include <cmath>
#include <span>

namespace kvatlas::sim {

namespace {

struct Unit {
  std::string_view name;
  double factor;
};

constexpr Unit kCount[] = {{"", 1}, {"count", 1}};
constexpr Unit kBytes[] = {{"B", 1},        {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40},
                           {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12}};
constexpr Unit kBandwidth[] = {{"B/s", 1},     {"KiB/s", 0x1p10}, {"MiB/s", 0x1p20}, {"GiB/s", 0x1p30}, {"TiB/s", 0x1p40},
                               {"KB/s", 1e3},  {"MB/s", 1e6},     {"GB/s", 1e9},     {"TB/s", 1e12}};
constexpr Unit kFlops[] = {{"FLOPS", 1}, {"GFLOPS", 1e9}, {"TFLOPS", 1e12}, {"PFLOPS", 1e15}, {"GOPS", 1e9}, {"TOPS", 1e12}, {"POPS", 1e15}};
constexpr Unit kSeconds[] = {{"s", 1}, {"ms", 1e-3}, {"us", 1e-6}, {"ns", 1e-9}};
constexpr Unit kHertz[] = {{"Hz", 1}, {"MHz", 1e6}, {"GHz", 1e9}};
constexpr Unit kWatts[] = {{"W", 1}, {"kW", 1e3}};
constexpr Unit kFraction[] = {{"", 1}, {"fraction", 1}, {"%", 0.01}};
constexpr Unit kUsd[] = {{"", 1}, {"USD/h", 1}};

std::span<const Unit> units_of(FigureKind kind) {
  switch (kind) {
    case FigureKind::count: return kCount;
    case FigureKind::bytes: return kBytes;
    case FigureKind::bandwidth: return kBandwidth;
    case FigureKind::flops: return kFlops;
    case FigureKind::seconds: return kSeconds;
    case FigureKind::hertz: return kHertz;
    case FigureKind::watts: return kWatts;
    case FigureKind::fraction: return kFraction;
    case FigureKind::usd_per_hour: return kUsd;
  }
  return {};
}

}  // namespace

std::optional<double> unit_factor(FigureKind kind, std::string_view unit) {
  for (const Unit& u : units_of(kind))
    if (u.name == unit) return u.factor;
  return std::nullopt;
}

std::optional<double> parse_quantity(FigureKind kind, std::string_view text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || !std::isfinite(number) || number < 0) return std::nullopt;
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  const auto factor = unit_factor(kind, unit);
  if (!factor) return std::nullopt;
  const double value = number * *factor;
  // Nothing real lies outside, and products of three figures stay finite inside.
  if (!(value <= 1e24) || (value != 0 && value < 1e-24)) return std::nullopt;
  if (kind == FigureKind::fraction && value > 1) return std::nullopt;
  return value;
}

std::string_view allowed_units(FigureKind kind) {
  switch (kind) {
    case FigureKind::count: return "a plain positive number, as in 132";
    case FigureKind::bytes: return "a positive size with B, KiB, MiB, GiB, TiB, KB, MB, GB or TB, as in 100MiB";
    case FigureKind::bandwidth: return "a positive rate with B/s, KiB/s to TiB/s or KB/s to TB/s, as in 6.7TB/s";
    case FigureKind::flops: return "a positive rate with GFLOPS, TFLOPS, PFLOPS, GOPS, TOPS or POPS, as in 989TFLOPS";
    case FigureKind::seconds: return "a positive time with s, ms, us or ns, as in 2.5us";
    case FigureKind::hertz: return "a positive frequency with Hz, MHz or GHz, as in 1980MHz";
    case FigureKind::watts: return "a positive power with W or kW, as in 700W";
    case FigureKind::fraction: return "a share above 0 and at most 1 or 100%, as in 0.85";
    case FigureKind::usd_per_hour: return "a plain positive number of US dollars, as in 2.5";
  }
  return "";
}

std::string_view base_unit(FigureKind kind) {
  switch (kind) {
    case FigureKind::count: return "count";
    case FigureKind::bytes: return "bytes";
    case FigureKind::bandwidth: return "bytes_per_s";
    case FigureKind::flops: return "flop_per_s";
    case FigureKind::seconds: return "s";
    case FigureKind::hertz: return "hz";
    case FigureKind::watts: return "w";
    case FigureKind::fraction: return "fraction";
    case FigureKind::usd_per_hour: return "usd_per_hour";
  }
  return "";
}

}  // namespace kvatlas::sim
