// Figures as people write them: a number with a unit of the figure's kind.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "simulator/gpu.hpp"

namespace kvatlas::sim {

/// The base-unit value of "6.7TB/s", "100MiB", "2.5us", "132"; nothing when number or unit do not fit the kind.
std::optional<double> parse_quantity(FigureKind kind, std::string_view text);

/// Base units in one unit of `unit` ("GiB" of bytes: 2^30); nothing when the kind has no such unit.
std::optional<double> unit_factor(FigureKind kind, std::string_view unit);

/// The units that a kind takes, for messages: "a size in B, KiB, ... ".
std::string_view allowed_units(FigureKind kind);

/// The name of the base unit in JSON: "bytes", "bytes_per_s", "flop_per_s", ...
std::string_view base_unit(FigureKind kind);

}  // namespace kvatlas::sim
