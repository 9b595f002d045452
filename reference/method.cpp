#include "reference/method.hpp"

#include <vector>

#include "core/errors.hpp"
#include "reference/registry.hpp"

namespace kvatlas {

const char* name_of(Family family) {
  static constexpr const char* kNames[kFamilyCount] = {"baseline",  "quantization", "eviction",       "merging",
                                                       "lowrank",   "transform",    "coding",         "retrieval",
                                                       "sparse_prefill", "speculation", "serving",    "architecture"};
  return kNames[static_cast<int>(family)];
}

const char* name_of(Need need) {
  switch (need) {
    case Need::hidden_states: return "hidden_states";
    case Need::query_weights: return "query_weights";
    case Need::output_weights: return "output_weights";
    case Need::attention_weights: return "attention_weights";
    case Need::draft_model: return "draft_model";
    case Need::diffusion_model: return "diffusion_model";
    case Need::marked_spans: return "marked_spans";
    case Need::trained_file: return "trained_file";
    case Need::calibration: return "calibration";
  }
  return "?";
}

const char* name_of(Works works) {
  return works == Works::yes ? "yes" : works == Works::partly ? "partly" : "no";
}

const Method& find_method(std::string_view slug) {
  std::vector<std::string_view> names;
  for (const Method* m : all_methods()) {
    if (slug == m->slug) return *m;
    names.emplace_back(m->slug);
  }
  for (const std::string_view weights : {"batquant", "ptq161"})
    if (slug == weights) throw InvalidArgument(cat(slug, " codes weights", slug == "batquant" ? " and activations" : "", ", no keys and values: a cache under it is full; give it as --weights ", slug));
  throw InvalidArgument(unknown_name("method", slug, names));
}

Ledger formula_ledger(const Method& method, const ParamRow& row, const CacheShape& shape, const History& history,
                      const ContentCounts& counts) {
#ifdef KVATLAS_POISON_FORMULAS
  (void)method, (void)row, (void)shape, (void)history, (void)counts;
  Ledger nonsense;
  nonsense.add("poison", Side::both, Scope::global, Bytes(std::int64_t{1} << 40));
  return nonsense;
#else
  return method.ledger_formula(row, shape, history, counts);
#endif
}

std::optional<std::string> why_not(const Method& method, const ParamRow& row, const CacheShape& shape) {
  if (auto reason = why_not(shape)) return reason;
  return method.why_not != nullptr ? method.why_not(row, shape) : std::nullopt;
}

std::optional<std::string> always_unrotated(const ParamRow&) { return "it works on keys before RoPE"; }

double BlockMask::density() const {
  std::int64_t kept = 0, all = 0;
  for (int h = 0; h < q_heads; ++h)
    for (std::int64_t i = 0; i < q_blocks; ++i)
      for (std::int64_t j = 0; j <= i && j < k_blocks; ++j) {
        kept += at(h, i, j) ? 1 : 0;
        ++all;
      }
  return all == 0 ? 0.0 : static_cast<double>(kept) / static_cast<double>(all);
}

void SideStore::drop_front(Tokens) { throw Unsupported("drop_front: rows of this code depend on their neighbours"); }

}  // namespace kvatlas
