// Files of the source tree that this program was built in, which an installed program does without.
#pragma once

#include <filesystem>

namespace kvatlas::cli {

/// The root of the source tree above the program's file; empty when there is none.
std::filesystem::path source_tree();

}  // namespace kvatlas::cli
