// Small random trained parts (reference/compose/trained_inputs.hpp) under the name that tests know.
#pragma once

#include "reference/compose/trained_inputs.hpp"

namespace kvatlas::test {

using scenarios::trained_inputs;

}  // namespace kvatlas::test
