#include "reference/components.hpp"

#include "core/errors.hpp"

namespace kvatlas {

namespace {

struct Named {
  std::string_view component;
  BitKind kind;
};
constexpr Named kNamed[] = {
    {"codes", BitKind::codes}, {"blocks", BitKind::codes}, {"streams", BitKind::codes}, {"coefficients", BitKind::codes}, {"indices", BitKind::codes},
    {"signs", BitKind::codes}, {"outlier_signs", BitKind::codes}, {"trits", BitKind::codes}, {"low_rank", BitKind::codes},
    {"scales", BitKind::scales}, {"absmax", BitKind::scales}, {"global_scale", BitKind::scales}, {"tensor_scale", BitKind::scales}, {"factors", BitKind::scales},
    {"balancer", BitKind::scales}, {"norms", BitKind::scales}, {"outlier_norms", BitKind::scales}, {"residual_norms", BitKind::scales}, {"radii", BitKind::scales},
    {"ranges", BitKind::scales}, {"thresholds", BitKind::scales},
    {"zeros", BitKind::zeros}, {"minima", BitKind::zeros},
    {"codebook", BitKind::codebooks}, {"codebooks", BitKind::codebooks}, {"cdf", BitKind::codebooks}, {"basis", BitKind::codebooks},
    {"index", BitKind::indices}, {"labels", BitKind::indices}, {"channels", BitKind::indices}, {"lengths", BitKind::indices},
    {"page_max", BitKind::indices}, {"page_min", BitKind::indices}, {"summaries", BitKind::indices}, {"tree", BitKind::indices}, {"positions", BitKind::indices},
    {"bitmaps", BitKind::indices}, {"offsets", BitKind::indices}, {"outlier_channels", BitKind::indices}, {"important", BitKind::indices},
    {"salient", BitKind::indices}, {"order", BitKind::indices}, {"header", BitKind::indices},
    {"residual", BitKind::residual}, {"edge_rows", BitKind::residual},
    {"rows", BitKind::rows}, {"thin_rows", BitKind::rows}, {"shared_rows", BitKind::rows}, {"sink_rows", BitKind::rows}, {"sinks", BitKind::rows},
    {"values", BitKind::rows}, {"outliers", BitKind::rows}, {"partial", BitKind::rows}, {"mean", BitKind::rows},
    {"state", BitKind::state}, {"clock", BitKind::state}, {"cursor", BitKind::state}, {"share", BitKind::state}, {"dropped", BitKind::state}, {"limit", BitKind::state},
    {"mass", BitKind::state}, {"history", BitKind::state},
    {"last_seen", BitKind::state}, {"interval", BitKind::state}, {"queries", BitKind::state}, {"window_queries", BitKind::state}, {"query_moments", BitKind::state},
    {"poison", BitKind::state}};

}  // namespace

const char* name_of(BitKind kind) {
  static constexpr const char* kNames[] = {"codes", "scales", "zeros", "codebooks", "indices", "residual window", "plain rows", "state", "padding"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::optional<BitKind> find_component(std::string_view component) {
  for (const Named& n : kNamed)
    if (n.component == component) return n.kind;
  return {};
}

BitKind kind_of_component(std::string_view component) {
  const auto kind = find_component(component);
  KV_ASSERT(kind.has_value(), "every component that a ledger names has a kind");
  return *kind;
}

}  // namespace kvatlas
