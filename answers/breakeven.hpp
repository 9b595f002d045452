// The borders at which a method starts to pay, under the keys of the contract.
#pragma once

#include "answers/record.hpp"
#include "simulator/breakeven.hpp"

namespace kvatlas::answers {

Json to_json(const sim::Breakeven& breakeven, const sim::BreakevenQuestion& question);

}  // namespace kvatlas::answers
