// Running sums of the heads' row counts, with which the heads of a ragged layer are found in one flat store.
#pragma once

#include <string>
#include <vector>

#include "reference/primitives/token_rows.hpp"

namespace kvatlas::eviction {

/// Adds the buffer "<prefix>lengths": heads + 1 words of 4 bytes.
void add_lengths(const TokenRows& rows, const std::string& prefix, std::vector<NamedBuffer>& out);

/// throws InvalidArgument when the saved lengths are missing or not those of these rows
void check_lengths(const TokenRows& rows, const std::string& prefix, std::span<const NamedBuffer> saved);

}  // namespace kvatlas::eviction
