// The inner loops of PackedMatrix: a tile of a few tokens by one or two panels of 16 outputs, over all inputs.
#pragma once

#include <cstdint>

namespace kvatlas::models {

/// One call of a micro-kernel.
struct Tile {
  const float* x;         // packed tokens: [in][tokens]
  const float* panel;     // [in][16]; further panels follow at `panel_stride`
  std::int64_t panel_stride;
  std::int64_t in;
  float* out;             // [tokens][panels * 16]
  std::int64_t out_stride;
};

/// A family of micro-kernels: `run(tokens, panels, tile)` for 1 <= tokens <= max_tokens, 1 <= panels <= max_panels(tokens).
struct MicroKernels {
  int max_tokens;
  int panels;         // of a full tile
  int single_panels;  // of a tile of one token
  void (*run)(int tokens, int panels, const Tile& tile);
};

extern const MicroKernels kScalarKernels;
extern const MicroKernels kAvx2Kernels;    // run is null where the build has no AVX2
extern const MicroKernels kAvx512Kernels;  // run is null where the compiler cannot make it

}  // namespace kvatlas::models
