// streaming_llm: the first tokens, which collect attention whatever they say, and the newest ones; nothing is scored.
// Source    sheet streaming_llm; Xiao et al. 2023, section 3.2; official code streaming_llm/kv_cache.py, pos_shift
// Keeps     sinks + recent_window tokens; keys before RoPE, rotated by their slot at every step (positions=slot), or after
//           RoPE at true positions (positions=true)
// Deviates  the cut before a turn (evict_for_space) is left out: a step attends to all that is kept, then cuts
#include <algorithm>

#include "core/errors.hpp"
#include "core/kernels/store.hpp"
#include "reference/method.hpp"
#include "reference/primitives/kept_rows.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/slot_positions.hpp"
#include "reference/primitives/token_cache.hpp"

namespace kvatlas::methods {
namespace {

enum class Positions : std::uint8_t { slot, true_position };
constexpr std::array<std::string_view, 2> kPositionsNames{"slot", "true"};

struct Params {
  Tokens sinks = 4_tok;
  Tokens recent_window = 2000_tok;  // the demo of the official code
  Positions positions = Positions::slot;
  static constexpr auto fields() {
    return std::tuple{field(&Params::sinks, "sinks", "token", 0, 1 << 20, "first tokens, never evicted"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never evicted"),
                      choice(&Params::positions, "positions", kPositionsNames,
                             "what RoPE sees: the place in the cache, or the place in the text")};
  }
  Tokens budget() const { return sinks + recent_window; }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.budget().value < 1) return "sinks + recent_window is 0, must be at least 1";
  return why_not_rows(shape);
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger = kept_ledger(shape, h, std::min(h.tokens(), p.budget()));
  ledger.set_prefill(kept_ledger(shape, {.prompt = h.prompt, .sequences = h.sequences}, h.prompt).total());
  return ledger;
}

/// Tokens that a decode step attends to: the cut comes after the attention.
Tokens attended(const Params& p, const History& h) { return std::min(h.tokens(), p.budget() + 1_tok); }

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;  // ring buffer behind the sinks: the new token takes the place of the one that leaves
  for (const LayerClass& c : shape.classes)
    if (!add_state_step(plan, c, h))
      add_kept_step(plan, c, shape.dtype, h,
                    {.tokens = attended(p, h), .rotate_keys = p.positions == Positions::slot && c.rope.rotary_dim > 0});
  return plan;
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = dense_prefill_plan(shape, h);
  if (h.prompt > p.budget())
    for (const LayerClass& c : shape.classes)
      if (c.kind == RowKind::kv) add_compaction(plan, c, shape.dtype, h, p.recent_window.value, c.count());
  return plan;
}

/// The official code rotates all keys into a new tensor at each step and concatenates sinks and window anew.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  for (const LayerClass& c : shape.classes) {
    if (add_state_step(plan, c, h)) continue;
    const Tokens tokens = attended(p, h);
    const std::int64_t heads = std::int64_t{h.sequences} * c.kv_heads;
    add_kept_step(plan, c, shape.dtype, h, {.tokens = tokens});
    if (p.positions == Positions::slot)
      plan.add(kernels::RopeApply{.heads = heads, .rows = tokens.value, .dim = c.k_dim, .dtype = shape.dtype}.call(c.count()));
    if (tokens > p.budget())
      for (const int dim : {c.k_dim, c.v_dim})
        plan.add(kernels::Copy{.segments = heads, .bytes = p.budget().value * dim * bytes_of(shape.dtype)}.call(c.count()));
  }
  return plan;
}

class Cache final : public TokenCache {
 public:
  Cache(const Params& p, const CacheShape& shape) : TokenCache(shape, Granularity::kv_head), p_(p), slots_(shape) {}

 private:
  void check(const Layer&, const StepInput& step) const override {
    if (p_.positions == Positions::slot && step.mask.kind == MaskKind::tree)
      throw Unsupported("streaming_llm at slot positions: the branches of a tree would need one slot twice");
  }

  void step(Layer& l, const PreparedStep& p, const StepInput& in, View<float> out) override {
    if (p_.positions == Positions::true_position) {
      l.rows.append(p.k.view(), p.v.view());
      attend(l, p, in, out);
    } else {
      l.rows.append(p.k_pre.view(), p.v.view());
      slots_.attend(l.c, l.index, l.rows, p, in, out);
    }
    if (prompt_done()) cut(l);
  }

  void after_prompt(Layer& l) override { cut(l); }

  void cut(Layer& l) const {
    for (int h = 0; h < l.rows.heads(); ++h)
      l.rows.keep(h, ends(l.rows.count(h), p_.sinks.value, p_.recent_window.value));
  }

  /// While nothing has been evicted, slots are the tokens themselves.
  std::int64_t restorable(const Layer& l) const override { return l.seen == l.rows.count(0) ? l.rows.count(0) : 0; }
  /// More rows than the budget exist only before the prompt ends.
  bool prompt_open() const override { return !layers().empty() && Tokens(layers().front().rows.count(0)) > p_.budget(); }

  Params p_;
  SlotPositions slots_;
};

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  return std::make_unique<Cache>(p, shape);
}

constexpr Deployable kDeployable[] = {
    {"trtllm", "0.6.0", "SwiftInfer plug-in", "https://github.com/hpcaitech/SwiftInfer"}};

constexpr Compat kCompat[] = {
    {"sinks=2016,recent_window=32,positions=true", "KVCache-Factory's StreamingLLM at a budget of 2048 keeps the first 2016 tokens of the prompt and its newest 32: long sinks, another method"},
    {"positions=true", "kvpress keeps true positions unless its press is wrapped in key rerotation"}};

std::optional<std::string> needs_unrotated(const Params& p) {
  return p.positions == Positions::slot ? std::optional("it rotates keys by their slots (positions=true takes them as they come)") : std::nullopt;
}

}  // namespace

extern constinit const Method streaming_llm{
    .slug = "streaming_llm", .name = "StreamingLLM", .family = Family::eviction,
    .paper = {.title = "Efficient Streaming Language Models with Attention Sinks", .url = "https://arxiv.org/abs/2309.17453", .year = 2023},
    .params = specs<Params>, .compat = kCompat, .deployable = kDeployable,
    .serving = {.prefix_cache = {Works::no, "after the prompt only its first and newest tokens are left"},
                .paged_cache = {Works::yes, "a page is freed when its last token leaves the window"},
                .chunked_prefill = {Works::yes, "the cut comes when the prompt is complete"},
                .cuda_graphs = {Works::yes, "constant shapes once the budget is full"},
                .tensor_parallelism = {Works::yes, "all heads keep the same tokens"},
                .speculation = {Works::partly, "rejected tokens can be taken back only until the first eviction"},
                .multi_turn = {Works::partly, "earlier turns are forgotten beyond the window"}},
    .exact_when = "recent_window=1M",
    .notes = "The whole prompt is attended to in full and cut when it is complete, as in the official code; decode steps cut "
             "after the attention. At slot positions outputs equal the full cache bit for bit until the first eviction, for "
             "texts that start at position 0.",
    .why_not = typed<why_not>, .needs_unrotated = typed<needs_unrotated>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .released_decode_plan = typed<released_decode_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods
