// Which tokens a diffusion model computes in a denoising step when the others are cached: dKV-Cache's four variants.
#pragma once

#include <cstdint>

#include "core/units.hpp"

namespace kvatlas::methods::dkv {

enum class Variant : std::uint8_t { decode, greedy, prefill, pd };

struct Schedule {
  Variant variant = Variant::decode;
  std::int64_t text = 0;       // tokens of prompt and answer
  std::int64_t generated = 0;  // the answer, masked at first
  std::int64_t block = 32;     // denoised one after the other (decode, greedy)
  std::int64_t steps = 32;     // of a block
  std::int64_t refresh = 8;    // every so many steps of a block all tokens are computed
  std::int64_t window = 4;     // masked neighbours that greedy computes beside the tokens of a step
};

/// Tokens decoded in steps 0, ..., step - 1 of a block of `masked` tokens: the share rounded down, the rest in the first steps.
std::int64_t decoded_before(std::int64_t masked, std::int64_t steps, std::int64_t step);

/// What all steps of an answer compute.
struct Work {
  std::int64_t steps = 0;
  std::int64_t full_steps = 0;      // all tokens of the text
  std::int64_t partial_tokens = 0;  // of the other steps together
  std::int64_t tokens(std::int64_t text) const { return full_steps * text + partial_tokens; }
};
/// decode   all, in the first two steps of a block and at every refresh; else those not decoded one step earlier
/// greedy   all at every refresh; else those of this step and of the one before, and `window` masked neighbours
/// prefill  all once; then the answer
/// pd       all once; the answer at every refresh; else what was not decoded one step earlier. Both know no blocks.
Work work_of(const Schedule& s);

}  // namespace kvatlas::methods::dkv
