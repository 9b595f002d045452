// Situations (reference/compose/scenario.hpp) under the names that tests know, and how many of them a build runs.
#pragma once

#include "reference/compose/scenario.hpp"

namespace kvatlas::test {

using scenarios::cached_methods;
using scenarios::digest;
using scenarios::draw;
using scenarios::Inputs;
using scenarios::inputs_for;
using scenarios::open_cache;
using scenarios::Random;
using scenarios::run_decode;
using scenarios::run_prompt;
using scenarios::Scenario;

/// Situations of one method in the present build: more in an optimised build, fewer under sanitizers or KVATLAS_DRAWS.
int draws();

}  // namespace kvatlas::test
