// The configs of models/zoo/, embedded by CMake (models/zoo.cmake): the product needs no source tree at run time.
#pragma once

#include <span>
#include <string_view>

namespace kvatlas::models {

struct ZooFile {
  std::string_view name;  // as in models/zoo/
  std::string_view text;
};

/// Every embedded config, ordered by file name.
std::span<const ZooFile> zoo_files();

}  // namespace kvatlas::models
