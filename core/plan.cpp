#include "core/plan.hpp"

#include <array>

namespace kvatlas {

const char* name_of(KernelId kernel) {
  static constexpr std::array<const char*, kKernelCount> kNames{
      "decode_attention", "prefill_attention", "span_merge",   "append",           "quantize_pack", "window_score",
      "mass_update",      "page_score",        "label_score",  "top_k",            "gather",        "weighted_merge",
      "resample",         "low_rank",          "factorize",    "entropy_code",     "block_select",  "shared_attention",
      "state_merge",      "rope_apply",        "transfer",     "copy",             "state_update"};
  return kNames[static_cast<std::size_t>(kernel)];
}

const char* name_of(Stage stage) {
  switch (stage) {
    case Stage::attention: return "attention";
    case Stage::select: return "select";
    case Stage::append: return "append";
    case Stage::compress: return "compress";
    case Stage::transfer: return "transfer";
  }
  return "?";
}

double Plan::read_bytes() const {
  double sum = 0;
  for (const KernelCall& c : calls_) sum += static_cast<double>(c.traffic.read_bytes) * c.launches;
  return sum;
}

double Plan::write_bytes() const {
  double sum = 0;
  for (const KernelCall& c : calls_) sum += static_cast<double>(c.traffic.write_bytes) * c.launches;
  return sum;
}

}  // namespace kvatlas
