#include "core/errors.hpp"
#include "models/hf_config.hpp"
#include "tests/fuzz/targets.hpp"

namespace kvatlas::fuzz {

void fuzz_config(std::span<const std::byte> data) {
  try {
    const models::Model model = models::import_config(text_of(data), "config.json");
    require(models::parameters(model) > 0, "a model has parameters");
  } catch (const Error&) {
  }
}

}  // namespace kvatlas::fuzz
