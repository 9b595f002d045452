// Parameters of a method: one list of fields gives the command line, Python, sweeps, documents and range checks.
#pragma once

#include <array>
#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "core/units.hpp"

namespace kvatlas {

enum class ParamType : std::uint8_t { integer, number, flag, choice };
const char* name_of(ParamType type);

/// One parameter as every door sees it. Values travel as doubles; a choice is the index of its name.
struct ParamSpec {
  const char* name = "";
  ParamType type = ParamType::integer;
  const char* unit = "";
  double min = 0, max = 0;
  double default_value = 0;
  std::span<const std::string_view> choices{};
  const char* help = "";
};

/// Values of all parameters of a method, in the order of its specs.
using ParamRow = boost::container::small_vector<double, 12>;

/// A member of a Params struct with its range; made by field(), flag() and choice().
template <class Owner, class Member>
struct Field {
  Member Owner::* member;
  ParamSpec spec;
};

template <class Owner, class Member>
constexpr Field<Owner, Member> field(Member Owner::* m, const char* name, const char* unit, double min, double max,
                                     const char* help) {
  return {m, {.name = name, .type = std::is_floating_point_v<Member> ? ParamType::number : ParamType::integer,
              .unit = unit, .min = min, .max = max, .help = help}};
}

template <class Owner>
constexpr Field<Owner, bool> flag(bool Owner::* m, const char* name, const char* help) {
  return {m, {.name = name, .type = ParamType::flag, .min = 0, .max = 1, .help = help}};
}

/// An enum member whose enumerators 0, 1, ... are spelled by `names` (an array with static storage).
template <class Owner, class Enum, std::size_t N>
constexpr Field<Owner, Enum> choice(Enum Owner::* m, const char* name, const std::array<std::string_view, N>& names,
                                    const char* help) {
  static_assert(std::is_enum_v<Enum>);
  return {m, {.name = name, .type = ParamType::choice, .min = 0, .max = static_cast<double>(N - 1),
              .choices = {names.data(), N}, .help = help}};
}

namespace detail {

template <class Member>
constexpr double to_number(const Member& v) {
  if constexpr (requires { v.value; }) {
    return static_cast<double>(v.value);
  } else {
    return static_cast<double>(v);
  }
}

template <class Member>
constexpr Member from_number(double v) {
  if constexpr (requires(Member m) { m.value; }) {
    return Member(static_cast<std::int64_t>(v));
  } else if constexpr (std::is_same_v<Member, bool>) {
    return v != 0;
  } else if constexpr (std::is_enum_v<Member>) {
    return static_cast<Member>(static_cast<int>(v));
  } else {
    return static_cast<Member>(v);
  }
}

template <class Params>
constexpr auto make_specs() {
  return std::apply(
      [](const auto&... f) {
        std::array<ParamSpec, sizeof...(f)> specs{f.spec...};
        [[maybe_unused]] const Params defaults{};
        [[maybe_unused]] std::size_t i = 0;
        ((specs[i++].default_value = to_number(defaults.*(f.member))), ...);
        return specs;
      },
      Params::fields());
}

template <class Params>
inline constexpr auto kSpecs = make_specs<Params>();

}  // namespace detail

/// The specs of a Params struct, for a method's record.
template <class Params>
inline constexpr std::span<const ParamSpec> specs{detail::kSpecs<Params>};

template <class Params>
Params params_of(const ParamRow& row) {
  Params p{};
  [[maybe_unused]] std::size_t i = 0;
  std::apply(
      [&](const auto&... f) {
        ((p.*(f.member) = detail::from_number<std::remove_cvref_t<decltype(p.*(f.member))>>(row[i++])), ...);
      },
      Params::fields());
  return p;
}

template <class Params>
ParamRow row_of(const Params& p) {
  ParamRow row;
  std::apply([&](const auto&... f) { (row.push_back(detail::to_number(p.*(f.member))), ...); }, Params::fields());
  return row;
}

ParamRow defaults_of(std::span<const ParamSpec> specs);

/// Reads one value as its spec spells it ("4", "32K", "true", "avg"); throws InvalidArgument naming the parameter,
/// the text and what is allowed.
double parse_value(const ParamSpec& spec, std::string_view method, std::string_view text);

/// The canonical spelling of a value; parse_value(format_value(v)) == v.
std::string format_value(const ParamSpec& spec, double value);

/// Sizes as users write them: 32768, 32K (= 32,768), 1M.
std::optional<std::int64_t> parse_size(std::string_view text);

}  // namespace kvatlas
