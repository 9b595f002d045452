// Names out of files for error messages: in quotes, short, and free of control characters.
#pragma once

#include <string>
#include <string_view>

namespace kvatlas::models {

/// At most 80 bytes; everything outside printable ASCII as \xHH.
std::string printable(std::string_view text);

}  // namespace kvatlas::models
