#include "reference/components.hpp"

namespace kvatlas {

namespace {

struct Named {
  std::string_view component;
  BitKind kind;
};
constexpr Named kNamed[] = {
    {"codes", BitKind::codes}, {"blocks", BitKind::codes}, {"streams", BitKind::codes}, {"coefficients", BitKind::codes},
    {"scales", BitKind::scales}, {"absmax", BitKind::scales}, {"global_scale", BitKind::scales}, {"norms", BitKind::scales},
    {"zeros", BitKind::zeros}, {"minima", BitKind::zeros},
    {"codebook", BitKind::codebooks}, {"codebooks", BitKind::codebooks}, {"cdf", BitKind::codebooks}, {"basis", BitKind::codebooks},
    {"index", BitKind::indices}, {"indices", BitKind::indices}, {"labels", BitKind::indices}, {"channels", BitKind::indices}, {"lengths", BitKind::indices},
    {"page_max", BitKind::indices}, {"page_min", BitKind::indices}, {"summaries", BitKind::indices}, {"tree", BitKind::indices}, {"positions", BitKind::indices},
    {"bitmap", BitKind::indices}, {"bitmaps", BitKind::indices}, {"offsets", BitKind::indices}, {"outlier_index", BitKind::indices}, {"outliers", BitKind::rows},
    {"residual", BitKind::residual}, {"edge_rows", BitKind::residual},
    {"rows", BitKind::rows}, {"shared_rows", BitKind::rows}, {"partial", BitKind::rows}};

}  // namespace

const char* name_of(BitKind kind) {
  static constexpr const char* kNames[] = {"codes", "scales", "zeros", "codebooks", "indices", "residual window", "plain rows", "state", "padding"};
  return kNames[static_cast<std::size_t>(kind)];
}

BitKind kind_of_component(std::string_view component) {
  for (const Named& n : kNamed)
    if (n.component == component) return n.kind;
  return BitKind::state;
}

}  // namespace kvatlas
