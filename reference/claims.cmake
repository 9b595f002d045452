# Embeds tables of text, so that the product needs no source tree at run time. A table is cut at line ends into literals far
# below the compilers' limits.

# kvatlas_embed_table(FILE SOURCE NAMESPACE FUNCTION): SOURCE defines NAMESPACE::FUNCTION(), the pieces of FILE in order.
function(kvatlas_embed_table file source namespace function)
  set(text "")
  if(EXISTS ${file})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    file(READ ${file} text)
  endif()
  get_filename_component(name ${file} NAME)
  set(pieces "")
  string(LENGTH "${text}" length)
  set(at 0)
  while(at LESS length)
    string(SUBSTRING "${text}" ${at} 16000 piece)
    string(FIND "${piece}" "\n" cut REVERSE)
    if(cut LESS 0)
      string(LENGTH "${piece}" cut)
    else()
      math(EXPR cut "${cut} + 1")
      string(SUBSTRING "${piece}" 0 ${cut} piece)
    endif()
    string(APPEND pieces "    R\"table(${piece})table\",\n")
    math(EXPR at "${at} + ${cut}")
  endwhile()
  file(CONFIGURE OUTPUT ${source} @ONLY CONTENT "// Generated from @name@. Do not edit.
#include <span>
#include <string_view>

namespace @namespace@ {
namespace {
constexpr std::string_view kPieces[] = {
@pieces@    \"\"};
}  // namespace
std::span<const std::string_view> @function@();
std::span<const std::string_view> @function@() { return kPieces; }
}  // namespace @namespace@
")
endfunction()

set(KVATLAS_CLAIMS_SOURCE ${CMAKE_BINARY_DIR}/generated/claims_generated.cpp)
kvatlas_embed_table(${CMAKE_SOURCE_DIR}/reference/claims.csv ${KVATLAS_CLAIMS_SOURCE} kvatlas::detail claims_text)
