// Fixed runs of the faces beside a one-sequence cache (speculation, groups of sequences, conversion) for the table of hashes.
#pragma once

#include <vector>

#include "tests/support/hash_cases.hpp"

namespace kvatlas::test {

std::vector<HashRow> beside_hash_rows();

}  // namespace kvatlas::test
