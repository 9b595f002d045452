#include <array>
#include <iterator>
#include <utility>

#include "gpu/kernels/integer_shapes.hpp"
#include "gpu/verify/instances.hpp"

namespace kvatlas::gpu {

namespace {

template <IntegerShape S>
constexpr DecodeInstance integer_instance() {
  return {S.base, S.shared_bytes(),
          [](Executor& e, const Launch& l, const Schedule& s, const DecodeArgs<SimCtx>& a) {
            return simulate(e, l, s, [&a](SimCtx& c) { integer_decode<S>(c, a); });
          },
          [](Executor& e, const Launch& l, const Schedule& s, const DecodeArgs<SimCtx>& a) {
            return simulate(e, l, s, [&a](SimCtx& c) { span_merge<S.base.dim, S.base.dtype>(c, a, S.base.q_per_kv); });
          },
          S.tile};
}

template <std::size_t... I>
constexpr std::array<DecodeInstance, sizeof...(I)> all_integer(std::index_sequence<I...>) {
  return {integer_instance<kIntegerShapes[I]>()...};
}
constexpr auto kIntegerInstances = all_integer(std::make_index_sequence<std::size(kIntegerShapes)>{});

}  // namespace

std::span<const DecodeInstance> integer_instances() { return kIntegerInstances; }

}  // namespace kvatlas::gpu
