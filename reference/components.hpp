// What the components of a ledger are: which of them hold values of the cache and which describe those.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace kvatlas {

enum class BitKind : std::uint8_t { codes, scales, zeros, codebooks, indices, residual, rows, state, padding };
inline constexpr int kBitKindCount = static_cast<int>(BitKind::padding) + 1;
/// "codes", "scales", "zeros", "codebooks", "indices", "residual window", "plain rows", "state", "padding".
const char* name_of(BitKind kind);
/// The kind of a ledger component by its name; every component of every method has one (a test draws them all).
BitKind kind_of_component(std::string_view component);
std::optional<BitKind> find_component(std::string_view component);
/// Whether a component holds values of the cache themselves.
inline bool is_payload(BitKind kind) { return kind == BitKind::codes || kind == BitKind::residual || kind == BitKind::rows; }

}  // namespace kvatlas
