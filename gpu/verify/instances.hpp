// The kernels that this build can run on the CPU, as data: a shape that names what is compiled, and the door to the executor.
#pragma once

#include <span>
#include <string>

#include "gpu/kernels/span_merge.hpp"
#include "gpu/kernels/page_score.hpp"
#include "gpu/kernels/quantize_pack.hpp"
#include "gpu/kernels/row_transforms.hpp"
#include "gpu/simt/sim_context.hpp"

namespace kvatlas::gpu {

struct QuantizeInstance {
  QuantizeShape shape;
  std::int64_t shared_bytes;
  LaunchReport (*run)(Executor&, const Launch&, const Schedule&, const QuantizeArgs<SimCtx>&);
};

struct DecodeInstance {
  DecodeShape shape;
  std::int64_t shared_bytes;
  LaunchReport (*run)(Executor&, const Launch&, const Schedule&, const DecodeArgs<SimCtx>&);
  LaunchReport (*merge)(Executor&, const Launch&, const Schedule&, const DecodeArgs<SimCtx>&);
  int integer_tile = 0;  // tokens of a tile of integer_decode; 0: decode_attention
};

struct RowInstance {
  RowShape shape;
  LaunchReport (*hadamard)(Executor&, const Launch&, const Schedule&, const RowArgs<SimCtx>&);
  LaunchReport (*rope)(Executor&, const Launch&, const Schedule&, const RowArgs<SimCtx>&);
};

struct PageScoreInstance {
  PageScoreShape shape;
  LaunchReport (*run)(Executor&, const Launch&, const Schedule&, const PageScoreArgs<SimCtx>&);
};

std::span<const PageScoreInstance> page_score_instances();
std::span<const RowInstance> row_instances();
std::span<const QuantizeInstance> quantize_instances();
std::span<const DecodeInstance> decode_instances();
/// The same in exact integers.
std::span<const DecodeInstance> integer_instances();

/// "int2/32t groups", "bf16", "nvfp4": what a format is called in tables.
std::string name_of(const KernelFormat& format, Dtype dtype);
/// "int2/32t+int2/32c q4 d128 bf16"
std::string name_of(const DecodeShape& shape);
std::string name_of(const QuantizeShape& shape);

}  // namespace kvatlas::gpu
