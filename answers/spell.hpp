// Figures as people read them: readable units, few digits.
#pragma once

#include <optional>
#include <string>

namespace kvatlas::answers {

/// "4.00 GiB", "1,536 B".
std::string spell_bytes(double bytes);
/// 1234567 -> "1,234,567".
std::string spell_count(double n);
/// Four significant digits: "0.01234", "12.34", "1234"; "-" when absent.
std::string spell_number(std::optional<double> value);
/// "3.35 TB/s", "989 TFLOP/s", "1.98 GHz": a decimal prefix before the unit.
std::string spell_si(double value, const char* unit);

}  // namespace kvatlas::answers
