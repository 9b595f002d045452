// weightedkv: the key with the least average attention is dropped and its value is blended into its right neighbour's.
// Source    sheet weightedkv; Yuan et al. 2025, section III; no official code
// Keeps     budget slots a kv head: keys after RoPE at true positions, values that stand for runs of tokens; 12 bytes of
//           attention mass and query count a slot
// Deviates  the paper leaves sinks, window and the treatment of a long prompt open: tokens go through one at a time, in order,
//           prompt and answer alike, so a prompt token attends to the compressed cache of its moment
#include <algorithm>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/transform.hpp"
#include "core/parallel.hpp"
#include "reference/method.hpp"
#include "reference/primitives/kept_rows.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/token_cache.hpp"
#include "reference/primitives/weighted_merge.hpp"

namespace kvatlas::methods {
namespace {

enum class Receiver : std::uint8_t { literal, mass };
constexpr std::array<std::string_view, 2> kReceiverNames{"literal", "mass"};
constexpr std::string_view kMass = "mass", kQueries = "queries";
constexpr int kMassBytes = 8, kQueriesBytes = 4;

struct Params {
  Tokens budget = 1024_tok;
  Tokens sinks = 4_tok;
  Tokens recent_window = 256_tok;  // a quarter of the budget
  Receiver receiver = Receiver::literal;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "slots kept"),
                      field(&Params::sinks, "sinks", "token", 0, 1 << 16, "first tokens, never merged away"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never merged away"),
                      choice(&Params::receiver, "receiver", kReceiverNames,
                             "statistics of the slot that receives a value: unchanged, or its mass grows by the merged one's")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.sinks + p.recent_window > p.budget)
    return cat("sinks + recent_window is ", (p.sinks + p.recent_window).value, ", must be at most budget (", p.budget.value, ")");
  return why_not_rows(shape);
}

Ledger held(const CacheShape& shape, const History& h, Tokens kept) {
  Ledger ledger = kept_ledger(shape, h, kept);
  const std::int64_t slots = kept.value * stored_heads(shape, h);
  ledger.add(kMass, Side::both, Scope::token, Bytes(kMassBytes * slots));
  ledger.add(kQueries, Side::both, Scope::token, Bytes(kQueriesBytes * slots));
  return ledger;
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger = held(shape, h, std::min(h.tokens(), p.budget));
  ledger.set_prefill(held(shape, {.prompt = h.prompt, .sequences = h.sequences}, std::min(h.prompt, p.budget)).total());
  return ledger;
}

/// `steps` steps of one token over `tokens` entries, the new one included.
void add_step(Plan& plan, const Params& p, const LayerClass& c, Dtype dtype, const History& h, Tokens tokens, double steps) {
  const std::int64_t rows = std::int64_t{h.sequences} * c.kv_heads;
  const bool full = tokens > p.budget;
  // The slot that was freed takes the next token, so rows lie in any order and are read through a list of slots.
  add_kept_step(plan, c, dtype, h, {.tokens = tokens, .emit_weights = true, .run = full ? 1_tok : 0_tok, .steps = steps});
  constexpr int kSlotBytes = kMassBytes + kQueriesBytes + 4;  // and the slot's entry in that list
  plan.add(kernels::MassUpdate{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .tokens = tokens,
                              .state_bytes = kSlotBytes}
              .call(c.count() * steps));
  if (full) {
    plan.add(kernels::TopK{.rows = rows, .candidates = (tokens - p.sinks - p.recent_window).value, .k = 1}.call(c.count() * steps));
    plan.add(kernels::WeightedMerge{.heads = rows, .rows = 1, .row_bytes = std::int64_t{c.v_dim} * bytes_of(dtype), .dim = c.v_dim}
                .call(c.count() * steps));
  }
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  for (const LayerClass& c : shape.classes)
    if (!add_state_step(plan, c, h)) add_step(plan, p, c, shape.dtype, h, std::min(h.tokens(), p.budget + 1_tok), 1.0);
  return plan;
}

/// Every prompt token is a step of its own: first while the cache fills (half full on average), then at the budget.
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  const Tokens filling = std::min(h.prompt, p.budget);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) {
      plan.add(dense_prefill_plan({.classes = {c}, .dtype = shape.dtype}, h));
      continue;
    }
    add_step(plan, p, c, shape.dtype, h, Tokens(ceil_div(filling.value, 2)), static_cast<double>(filling.value));
    add_step(plan, p, c, shape.dtype, h, p.budget + 1_tok, static_cast<double>((h.prompt - filling).value));
  }
  return plan;
}

class Cache final : public TokenCache {
 public:
  Cache(const Params& p, const CacheShape& shape) : TokenCache(shape, Granularity::kv_head), p_(p) {
    for (Layer& l : layers()) {
      l.rows.add_words(kMass, kMassBytes);
      l.rows.add_words(kQueries, kQueriesBytes);
    }
  }

 private:
  void check(const Layer&, const StepInput& step) const override {
    if (step.mask.kind != MaskKind::causal && step.positions.size() > 1)
      throw Unsupported("weightedkv takes tokens one at a time: mask must be causal");
  }

  void step(Layer& l, const PreparedStep& p, const StepInput& in, View<float> out) override {
    parallel_for(l.c.kv_heads, [&](std::int64_t h) {
      const int head = static_cast<int>(h);
      for (std::int64_t i = 0; i < p.n; ++i) {
        l.rows.append(head, p.k.view().row(head, i), p.v.view().row(head, i));
        attend_one(l, head, p.q.view().slice(1, i, 1), in, out.slice(1, i, 1));
        if (l.rows.count(head) > p_.budget.value) merge_one(l.rows, head);
      }
    });
  }

  /// Mass grows by the weights of all query heads of the group; their mean would be this over q_per_kv for every slot.
  static void attend_one(Layer& l, int head, View<const float> q, const StepInput& in, View<float> out) {
    const Array k = l.rows.keys(head), v = l.rows.values(head);
    SlotWords& mass = l.rows.words(0);
    SlotWords& queries = l.rows.words(1);
    attend_new(l.c, head, q, k.view(), v.view(), {}, in.sinks, out,
               [&](int, std::int64_t, std::int64_t first, std::span<const float> weights) {
                 for (std::size_t t = 0; t < weights.size(); ++t)
                   mass.add(head, first + static_cast<std::int64_t>(t), num::to_mass(weights[t]));
               });
    for (std::int64_t s = 0; s < l.rows.count(head); ++s) queries.add(head, s, 1);
  }

  void merge_one(TokenRows& rows, int head) const {
    const std::int64_t n = rows.count(head);
    SlotWords& mass = rows.words(0);
    std::vector<float> average(static_cast<std::size_t>(n));
    for (std::int64_t s = 0; s < n; ++s)
      average[static_cast<std::size_t>(s)] = num::from_mass(mass.get(head, s)) / static_cast<float>(rows.words(1).get(head, s));
    const std::span<const float> candidates =
        std::span<const float>(average).subspan(static_cast<std::size_t>(p_.sinks.value),
                                                static_cast<std::size_t>(n - p_.sinks.value - p_.recent_window.value));
    const std::int64_t from = p_.sinks.value + lowest(candidates);
    const std::int64_t to = from + 1 < n ? from + 1 : from - 1;
    const Array values = rows.values(head);
    std::vector<float> blended(values.view().row(to).begin(), values.view().row(to).end());
    blend_into(blended, average[static_cast<std::size_t>(to)], values.view().row(from), average[static_cast<std::size_t>(from)]);
    rows.set_value(head, to, blended);
    if (p_.receiver == Receiver::mass) mass.add(head, to, mass.get(head, from));
    Slots stay = ends(n, from, n - from - 1);
    rows.keep(head, stay);
  }

  Params p_;
};

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  return std::make_unique<Cache>(p, shape);
}

constexpr Need kNeeds[] = {Need::attention_weights};

}  // namespace

extern constinit const Method weightedkv{
    .slug = "weightedkv", .name = "WeightedKV", .family = Family::merging,
    .paper = {.title = "WeightedKV: Attention Scores Weighted Key-Value Cache Merging for Large Language Models",
              .url = "https://arxiv.org/abs/2503.01330", .year = 2025},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = {Works::no, "which values are merged depends on every later query"},
                .paged_cache = {Works::partly, "each step frees one slot somewhere in the middle of each head's pages"},
                .chunked_prefill = {Works::yes, "tokens go through one at a time, however they arrive"},
                .cuda_graphs = {Works::yes, "constant shapes once the budget is full"},
                .tensor_parallelism = {Works::yes, "kv heads choose independently"},
                .speculation = {Works::no, "rejected queries have changed the mass of every slot"},
                .multi_turn = {Works::partly, "merged values do not come apart again"}},
    .exact_when = "budget=1M",
    .notes = "Sequential reference rule: each token, of the prompt too, is stored, attends to the cache as it is, adds its "
             "weights to the mass of every slot it saw, and then at most one slot is merged away; so the cache never holds more "
             "than budget slots between tokens, the end of the prompt changes nothing, and prompt outputs differ from full "
             "attention once the budget is full. A prompt is thus as slow as its tokens decoded one by one.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods
