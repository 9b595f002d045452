// Kernels of a diffusion model's denoising step: some tokens of a text are computed anew and see all of it.
#pragma once

#include "core/layer_graph.hpp"
#include "core/ledger.hpp"
#include "core/plan.hpp"

namespace kvatlas {

/// In every layer of `c` the rows of `queries` tokens are written over, and their queries attend to all `tokens` of the text.
void add_denoising_pass(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, std::int64_t queries, Tokens tokens, double launches);

}  // namespace kvatlas
