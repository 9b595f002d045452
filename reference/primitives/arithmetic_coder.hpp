// An arithmetic coder with fixed tables: 16-bit cumulative frequencies, 32-bit interval, one stream a table.
// Source    sheet cachegen, steps 3 to 5: the coder of torchac and of CacheGen's CUDA kernels
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvatlas::coder {

/// Cumulative frequencies of `symbols` over an alphabet of table.size() - 1: entry i is
/// floor((65535 - alphabet) * count(symbols < i) / count) + i, so the table starts at 0, ends at 65535 and rises strictly:
/// a symbol that never occurs keeps an interval. Nothing is needed of a table without symbols, which counts as uniform.
void fill_table(std::span<const std::uint8_t> symbols, std::span<std::uint16_t> table);

/// Whether a table could have come from fill_table: 0 first, 65535 last, strictly rising.
bool is_table(std::span<const std::uint16_t> table);

/// Appends the coded bytes of `symbols` (each below table.size() - 1) to `out`: bits most significant first, the last byte
/// filled with zeros. Returns the number of bytes, at least 1.
std::size_t encode(std::span<const std::uint8_t> symbols, std::span<const std::uint16_t> table, std::vector<std::byte>& out);

/// Decodes symbols.size() symbols; bits behind the end of `coded` read as 0. Any input gives symbols of the alphabet.
void decode(std::span<const std::byte> coded, std::span<const std::uint16_t> table, std::span<std::uint8_t> symbols);

}  // namespace kvatlas::coder
