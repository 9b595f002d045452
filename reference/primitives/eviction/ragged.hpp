// Layers whose heads hold different numbers of rows: running sums with which the heads are found in one flat store, and counts.
#pragma once

#include <string>
#include <vector>

#include "reference/primitives/token_rows.hpp"

namespace kvatlas::eviction {

/// Adds the buffer "<prefix>lengths": heads + 1 words of 4 bytes.
void add_lengths(const TokenRows& rows, const std::string& prefix, std::vector<NamedBuffer>& out);

/// throws InvalidArgument when the saved lengths are missing or not those of these rows
void check_lengths(const TokenRows& rows, const std::string& prefix, std::span<const NamedBuffer> saved);

/// Adds what a layer holds: "kept_rows" of its heads, and their "key_elements" and "value_elements".
void count_kept(const TokenRows& rows, const LayerClass& stored, ContentCounts& counts);

}  // namespace kvatlas::eviction
