#include "core/code_format.hpp"

#include "core/errors.hpp"

namespace kvatlas {

std::string name_of(const CodeFormat& format) {
  std::string name;
  switch (format.kind) {
    case CodeKind::plain: return format.bits == 32 ? "f32" : "16-bit";
    case CodeKind::fp8: name = "fp8"; break;
    case CodeKind::integer: name = cat("int", format.bits); break;
    case CodeKind::fp4: name = "fp4"; break;
    case CodeKind::table: name = cat("table", format.bits); break;
  }
  if (format.group_size > 0)
    name += cat("/", format.group_size, format.axis == GroupAxis::tokens ? "t" : format.axis == GroupAxis::channels ? "c" : "");
  return name;
}

}  // namespace kvatlas
