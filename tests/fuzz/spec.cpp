#include "core/errors.hpp"
#include "sweeps/spec.hpp"
#include "tests/fuzz/targets.hpp"

namespace kvatlas::fuzz {

void fuzz_spec(std::span<const std::byte> data) {
  try {
    // A folder that does not exist: no document makes the parser open files of the machine.
    const sweep::Spec spec = sweep::parse_spec(text_of(data), "spec.json", "/nonexistent/kvatlas");
    require(!spec.text.empty(), "a spec has a canonical text");
    const sweep::Spec again = sweep::parse_spec(spec.text, "again", "/nonexistent/kvatlas");
    require(again.text == spec.text && again.hash == spec.hash, "the canonical text of a spec is its own canonical text");
  } catch (const Error&) {
  }
}

}  // namespace kvatlas::fuzz
