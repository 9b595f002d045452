// The registry of methods, written by CMake from the list of files (reference/registry.cmake).
#pragma once

#include <span>
#include <string_view>

namespace kvatlas {

struct Method;

/// Every method, ordered by family folder and slug.
std::span<const Method* const> all_methods();

/// throws InvalidArgument with a suggestion when no method has this slug.
const Method& find_method(std::string_view slug);

}  // namespace kvatlas
