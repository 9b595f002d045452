// The record of a method: metadata, parameters and faces as plain data. A caller picks functions out of the record.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/ledger.hpp"
#include "core/plan.hpp"
#include "reference/cache.hpp"
#include "reference/faces.hpp"
#include "reference/params.hpp"

namespace kvatlas {

enum class Family : std::uint8_t {
  baseline, quantization, eviction, merging, lowrank, transform, coding, retrieval, sparse_prefill, speculation, serving,
  architecture
};
constexpr int kFamilyCount = static_cast<int>(Family::architecture) + 1;
const char* name_of(Family family);

struct Paper {
  const char* title = "";
  const char* url = "";
  int year = 0;
};

/// Something that must be handed in beside the parameters.
enum class Need : std::uint8_t { hidden_states, query_weights, output_weights, attention_weights, draft_model, diffusion_model, marked_spans, trained_file, calibration };
const char* name_of(Need need);

/// A setting that reproduces a defect of released code.
struct Compat {
  const char* setting;  // "pooling_order=official"
  const char* defect;
};

enum class Works : std::uint8_t { yes, partly, no };
const char* name_of(Works works);
struct Serving {
  struct Answer {
    Works works = Works::yes;
    const char* reason = "";
  };
  Answer prefix_cache{}, paged_cache{}, chunked_prefill{}, cuda_graphs{}, tensor_parallelism{}, speculation{}, multi_turn{};
};

/// Where the method can be switched on today.
struct Deployable {
  const char* engine;
  const char* min_version;
  const char* flag;
  const char* source;
};

/// Plain data with designated initialisers; nothing runs before main.
struct Method {
  const char* slug = "";
  const char* name = "";
  Family family = Family::baseline;
  Paper paper{};
  std::span<const ParamSpec> params{};
  std::span<const Need> needs{};
  std::span<const EventKind> events{};  // what KvCache::notify() has a rule for
  std::span<const Compat> compat{};
  std::span<const Deployable> deployable{};
  Serving serving{};
  bool data_dependent = false;
  bool transport_only = false;  // the stored form is for storage and transfer; a running sequence needs its dense working copy
  const char* equivalent_to = nullptr;  // slug of a method with equal outputs at defaults, and why in `notes`
  const char* exact_when = nullptr;     // parameters at which the output equals `full` bit for bit, else nullptr
  const char* notes = "";               // deviations from paper and released code, one paragraph

  // Faces. An absent face is nullptr.
  std::optional<std::string> (*why_not)(const ParamRow&, const CacheShape&) = nullptr;
  std::optional<std::string> (*needs_unrotated)(const ParamRow&) = nullptr;  // why queries and keys that are rotated already, by a rotation it is not told, give another algorithm
  Ledger (*ledger_formula)(const ParamRow&, const CacheShape&, const History&, const ContentCounts&) = nullptr;
  Plan (*decode_plan)(const ParamRow&, const CacheShape&, const History&, const ContentCounts&) = nullptr;
  Plan (*prefill_plan)(const ParamRow&, const CacheShape&, const History&, const ContentCounts&) = nullptr;
  Plan (*released_decode_plan)(const ParamRow&, const CacheShape&, const History&, const ContentCounts&) = nullptr;
  std::unique_ptr<KvCache> (*open)(const ParamRow&, const CacheShape&, const OpenInputs&) = nullptr;
  std::unique_ptr<SideStore> (*open_side)(const ParamRow&, const LayerClass&, int layer, Side, Dtype) = nullptr;
  SideLayout (*side_layout)(const ParamRow&, const LayerClass&, Side, Dtype, Tokens context) = nullptr;
  std::unique_ptr<KvGroup> (*open_group)(const ParamRow&, const CacheShape&) = nullptr;
  BlockMask (*select_blocks)(const ParamRow&, const PromptAttention&) = nullptr;
  std::unique_ptr<Speculator> (*speculate)(const ParamRow&, TargetModel, DraftModel, const SpeculationOptions&) = nullptr;
  Conversion (*convert)(const ParamRow&, const CacheShape&, const TensorMap&) = nullptr;
  double (*expected_emitted)(const ParamRow&, double acceptance) = nullptr;  // speculation: tokens per verified round
};

namespace detail {

template <auto F, class Signature>
struct Typed;
template <auto F, class R, class P, class... Args>
struct Typed<F, R (*)(const P&, Args...)> {
  static R call(const ParamRow& row, Args... args) { return F(params_of<P>(row), std::forward<Args>(args)...); }
};

}  // namespace detail

/// typed<f>: a function over the method's own Params as a face over a parameter row.
template <auto F>
inline constexpr auto typed = &detail::Typed<F, decltype(F)>::call;

/// The formula of a record. The poisoned build answers nonsense, which no counted figure may notice.
Ledger formula_ledger(const Method& method, const ParamRow& row, const CacheShape& shape, const History& history,
                      const ContentCounts& counts = {});

/// The face `needs_unrotated` of a method that keeps or studies keys before RoPE whatever its parameters.
std::optional<std::string> always_unrotated(const ParamRow& row);

/// First reason why this method cannot serve this shape with these parameters: shape, method's own limits, layer kinds.
std::optional<std::string> why_not(const Method& method, const ParamRow& row, const CacheShape& shape);

}  // namespace kvatlas
