// specpv: drafts are verified against a small part of the cache, and now and then against all of it.
// Source    sheet specpv; arXiv 2512.02337; acceptance as in EAGLE-3
// Keeps     every token; summaries of blocks; per layer and kv head a contiguous copy of sinks, retrieved blocks, newest window
//           and the tokens accepted since the last full pass; keys after RoPE at true positions
// Deviates  drafts come from outside (any tree or chain, chosen or sampled); rows grow with the text where the official code
//           allocates them whole; nothing is done that the official code does only to clear buffers
//
// A step verifies the last emitted token and its draft tree, tree_size + 1 tokens at most. Tokens [text] are those before it.
//   text <= sinks + retrieved + window, or partial=false     full pass, lossless
//   first step beyond, or more than `buffer` tokens behind the last refresh   full pass over all rows, refresh
//   else                                                     partial pass over sinks, blocks, window, buffer
// A full pass starts with the tokens that only partial passes have seen; their rows become exact, their logits are dropped.
// The up to block - 1 tokens between the last whole block and the window are in no part: so it is in the official rule.
#include <algorithm>

#include "core/errors.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/store.hpp"
#include "reference/method.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/speculation.hpp"
#include "reference/speculation/specpv/cache.hpp"

namespace kvatlas::methods {
namespace {

using partial_verify::Cache;
using partial_verify::Layout;
using partial_verify::Score;
using partial_verify::Verify;

constexpr std::array<std::string_view, 2> kScoreNames{"code", "quest"};

struct Params {
  Tokens block = 16_tok;
  int sink_blocks = 2;
  int retrieval_blocks = 256;
  int window_blocks = 8;
  Tokens buffer = 20_tok;
  int tree_size = 60;
  int depth = 7;
  Score score = Score::code;
  bool partial = true;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::block, "block", "token", 1, 256, "tokens of one summarised block"),
        field(&Params::sink_blocks, "sink_blocks", "block", 0, 64, "first blocks, always in the partial cache"),
        field(&Params::retrieval_blocks, "retrieval_blocks", "block", 1, 8192, "blocks that a refresh retrieves for each kv head"),
        field(&Params::window_blocks, "window_blocks", "block", 1, 256, "newest tokens in the partial cache, in blocks"),
        field(&Params::buffer, "buffer", "token", 0, 4096, "accepted tokens behind a refresh up to which steps are verified partially"),
        field(&Params::tree_size, "tree_size", "token", 1, 512, "drafted tokens of a step at most"),
        field(&Params::depth, "depth", "token", 1, 64, "levels of the draft tree at most"),
        choice(&Params::score, "score", kScoreNames, "score of a block: larger of two products, as released, or Quest's bound"),
        flag(&Params::partial, "partial", "verify against the partial cache; off: every step in full, lossless")};
  }
};

Layout layout(const Params& p) {
  return {.block = p.block.value, .sinks = p.sink_blocks * p.block.value, .retrieved_blocks = p.retrieval_blocks,
          .window = p.window_blocks * p.block.value, .buffer = p.buffer.value, .tree = p.tree_size, .partial = p.partial, .score = p.score};
}

std::optional<std::string> why_not(const Params&, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) return "every layer must cache keys and values: drafted tokens are taken back, and blocks are chosen by kv head";
    if (c.window.value > 0) return cat("window is ", c.window.value, ", must be 0: a sliding window cannot give drafted tokens' places back");
  }
  return std::nullopt;
}

/// A tree of `depth` levels of which each is hit with this chance.
double expected_emitted(const Params& p, double acceptance) { return expected_tokens(acceptance, std::min(p.depth, p.tree_size)); }

/// What a plan assumes of the draft, where nobody measured it.
constexpr double kAssumedAcceptance = 0.8;

/// One full round and the partial rounds that follow, as plans and predictions take them.
struct Cycle {
  double emitted = 1.0;       // tokens of a round
  int partial = 0;            // partial rounds to one full round
  std::int64_t missing = 0;   // tokens that the full round computes again
};
Cycle cycle(const Params& p, Tokens context) {
  Cycle c{.emitted = expected_emitted(p, kAssumedAcceptance)};
  if (!p.partial || context.value <= layout(p).fixed()) return c;
  c.partial = partial_rounds(c.emitted, c.emitted, p.buffer.value);
  c.missing = static_cast<std::int64_t>(c.partial * c.emitted + 0.5);
  return c;
}

/// History counts the tokens whose rows were computed: the last emitted token is not among them yet.
Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  const Layout l = layout(p);
  History full = h;
  const Cycle c = cycle(p, h.tokens());
  const std::int64_t missing = p.partial ? counts.get("missing", std::min(c.missing / 2, h.generated.value)) : 0;
  full.generated -= Tokens(missing);
  Ledger ledger = dense_ledger(shape, full);
  if (!p.partial) return ledger;
  const std::int64_t blocks = counts.get("blocks", h.tokens().value > l.fixed() ? l.blocks(h.tokens().value) : 0);
  for (const LayerClass& k : shape.classes) {
    const std::int64_t rows = std::int64_t{k.kv_heads} * k.count() * h.sequences * bytes_of(shape.dtype);
    ledger.add("summaries", Side::key, Scope::group, Bytes(2 * blocks * rows * k.k_dim));
    ledger.add("partial", Side::key, Scope::sequence, Bytes(l.rows() * rows * k.k_dim));
    ledger.add("partial", Side::value, Scope::sequence, Bytes(l.rows() * rows * k.v_dim));
  }
  ledger.add("state", Side::both, Scope::sequence, Bytes(16 * h.sequences));
  return ledger;
}

/// Rows of `queries` new tokens come in and attend to `tokens` entries, themselves included.
void add_pass(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, std::int64_t queries, Tokens tokens, double launches) {
  const CodeFormat plain = CodeFormat::plain(dtype);
  plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = dtype,
                           .k_format = plain, .v_format = plain, .rows = queries}
               .call(launches));
  plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                    .v_dim = c.v_dim, .dtype = dtype, .tokens = tokens, .k_format = plain, .v_format = plain,
                                    .queries = static_cast<int>(queries)}
               .call(launches));
  plan.add(kernels::SpanMerge{.rows = std::int64_t{h.sequences} * c.q_heads * queries, .v_dim = c.v_dim, .dtype = dtype, .tokens = tokens}
               .call(launches));
}

/// One round of verification, the mean over a cycle of one full and several partial ones; expected_emitted() tokens come of
/// it. The draft model's own work is not in it, nor are the new blocks' summaries (a read of the tokens of one cycle).
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  const Layout l = layout(p);
  const Cycle round = cycle(p, h.tokens());
  const bool partial = p.partial && h.tokens().value > l.fixed();
  const std::int64_t tree = p.tree_size + 1;
  for (const LayerClass& c : shape.classes) {
    const std::int64_t heads = std::int64_t{h.sequences} * c.kv_heads, row = std::int64_t{c.k_dim + c.v_dim} * bytes_of(shape.dtype);
    const double full = static_cast<double>(c.count()) / (round.partial + 1);
    add_pass(plan, c, shape.dtype, h, tree + round.missing, h.tokens() + Tokens(tree), full);
    if (partial) {
      const std::int64_t blocks = l.blocks(h.tokens().value);
      plan.add(kernels::PageScore{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv() * static_cast<int>(tree),
                                  .k_dim = c.k_dim, .dtype = shape.dtype, .pages = blocks}
                   .call(full));
      plan.add(kernels::TopK{.rows = heads, .candidates = blocks, .k = p.retrieval_blocks}.call(full));
      plan.add(kernels::Gather{.heads = heads, .rows = l.fixed() + tree, .row_bytes = row}.call(full));
      // The buffer is filled up to half on average.
      const Tokens seen(l.fixed() + p.buffer.value / 2 + tree);
      add_pass(plan, c, shape.dtype, h, tree, seen, full * round.partial);
    }
    const auto accepted = static_cast<std::int64_t>(round.emitted + 0.5);
    plan.add(kernels::Gather{.heads = heads, .rows = accepted, .row_bytes = row}.call(c.count()));
  }
  return plan;
}

Plan prefill_plan(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) { return dense_prefill_plan(shape, h); }

class PartialSpeculator final : public Speculator {
 public:
  PartialSpeculator(const Params& p, TargetModel target, DraftModel draft, const SpeculationOptions& options)
      : p_(p), target_(std::move(target)), draft_(std::move(draft)), options_(options), cache_(target_.shape, layout(p)) {}

  void start(std::span<const TokenId> prompt) override {
    if (prompt.empty()) throw InvalidArgument("prompt is empty, must hold at least one token");
    if (!text_.empty()) throw InvalidArgument("start() was called before; a speculator serves one text");
    for (std::size_t i = 0; i < prompt.size(); ++i)
      if (prompt[i] < 0 || prompt[i] >= target_.vocabulary)
        throw InvalidArgument(cat("prompt[", i, "] is ", prompt[i], ", must be below the vocabulary (", target_.vocabulary, ")"));
    // The last token goes in with the first draft.
    if (const auto before = prompt.first(prompt.size() - 1); !before.empty()) {
      std::vector<std::int64_t> positions(before.size());
      for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int64_t>(i);
      run(before, positions, {});
    }
    cache_.end_prefill();
    text_.assign(prompt.begin(), prompt.end());
  }

  std::vector<TokenId> step() override {
    if (text_.empty()) throw InvalidArgument("step() was called before start(), which brings the prompt");
    const DraftTree tree = draft_.propose(text_, p_.tree_size);
    check_tree(tree, p_.tree_size, p_.depth, target_.vocabulary);

    const std::int64_t text = static_cast<std::int64_t>(text_.size()) - 1;  // the last token is the root of the tree
    const Verify how = verification(text);
    const std::int64_t missing = how == Verify::partial ? 0 : text - cache_.full_tokens();
    std::vector<TokenId> tokens(text_.end() - 1 - missing, text_.end());
    std::vector<std::int64_t> positions;
    for (std::int64_t i = 0; i <= missing; ++i) positions.push_back(text - missing + i);
    const std::vector<int> levels = levels_of(tree);
    for (std::size_t i = 0; i < tree.tokens.size(); ++i) {
      tokens.push_back(tree.tokens[i]);
      positions.push_back(text + levels[i]);
    }
    const std::vector<std::uint8_t> mask = verify_mask(tree, missing);
    const auto n = static_cast<std::int64_t>(tokens.size());

    cache_.begin(how, missing);
    Verdict verdict;
    try {
      const Array logits = run(tokens, positions, {.kind = MaskKind::tree, .tree = {mask.data(), {n, n}}});
      const View<const float> seen = logits.view().slice(0, missing, n - missing);
      verdict = options_.greedy ? accept_greedy(tree, seen)
                                : accept_sampled(tree, seen, options_.temperature, {.seed = options_.seed, .step = round_});
    } catch (...) {
      cache_.abandon();
      throw;
    }
    std::vector<std::int64_t> kept{0};
    std::vector<TokenId> emitted;
    for (const int node : verdict.path) {
      kept.push_back(node + 1);
      emitted.push_back(tree.tokens[static_cast<std::size_t>(node)]);
    }
    emitted.push_back(verdict.next);
    cache_.accept(kept);
    text_.insert(text_.end(), emitted.begin(), emitted.end());
    ++round_;
    ++(how == Verify::partial ? stats_.partial_steps : stats_.full_steps);
    stats_.drafted += static_cast<std::int64_t>(tree.tokens.size());
    stats_.accepted += static_cast<std::int64_t>(verdict.path.size());
    stats_.emitted += static_cast<std::int64_t>(emitted.size());
    return emitted;
  }

  SpeculationStats stats() const override { return stats_; }
  KvCache& cache() override { return cache_; }

 private:
  Verify verification(std::int64_t text) const {
    if (!p_.partial || text <= cache_.layout().fixed()) return Verify::full;
    return cache_.refreshed() && cache_.buffered() <= p_.buffer.value ? Verify::partial : Verify::refresh;
  }

  Array run(std::span<const TokenId> tokens, std::span<const std::int64_t> positions, const AttentionMask& mask) {
    const auto n = static_cast<std::int64_t>(tokens.size());
    Array logits({n, target_.vocabulary});
    target_.forward(tokens, {positions.data(), {n}}, mask, cache_, logits.view());
    return logits;
  }

  Params p_;
  TargetModel target_;
  DraftModel draft_;
  SpeculationOptions options_;
  Cache cache_;
  std::vector<TokenId> text_;  // prompt and everything emitted
  std::uint32_t round_ = 0;
  SpeculationStats stats_;
};

std::unique_ptr<Speculator> speculate(const Params& p, TargetModel target, DraftModel draft, const SpeculationOptions& options) {
  if (const auto reason = kvatlas::why_not(target.shape)) throw InvalidArgument(*reason);
  if (const auto reason = why_not(p, target.shape)) throw Unsupported(cat("specpv: ", *reason));
  if (target.vocabulary < 1) throw InvalidArgument(cat("vocabulary is ", target.vocabulary, ", must be at least 1"));
  if (!target.forward || !draft.propose) throw InvalidArgument("target.forward and draft.propose must both be given");
  if (!options.greedy && !(options.temperature > 0.0F && options.temperature <= 1e6F))
    throw InvalidArgument(cat("temperature is ", options.temperature, ", must be above 0 and at most 1e6 when sampling"));
  return std::make_unique<PartialSpeculator>(p, std::move(target), std::move(draft), options);
}

constexpr Need kNeeds[] = {Need::draft_model};

}  // namespace

extern constinit const Method specpv{
    .slug = "specpv", .name = "SpecPV", .family = Family::speculation,
    .paper = {.title = "SpecPV: Improving Self-Speculative Decoding for Long-Context Generation via Partial Verification",
              .url = "https://arxiv.org/abs/2512.02337", .year = 2025},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = {Works::yes, "all rows of the prompt are kept"},
                .paged_cache = {Works::partly, "the partial cache is one contiguous piece a sequence"},
                .chunked_prefill = {Works::yes, "the partial cache comes into being after the prompt"},
                .cuda_graphs = {Works::partly, "full and partial passes are two graphs"},
                .tensor_parallelism = {Works::yes, "blocks are chosen for each kv head alone"},
                .multi_turn = {Works::yes, "a new turn ends the partial cache, and the next step makes it anew"}},
    .data_dependent = true,
    .notes = "Acceptance is exact for the logits of the pass; partial passes see a part of the text, and that is the only loss. "
             "partial=false never loses anything. The released score takes the larger of two whole products, which is no upper "
             "bound; score=quest is one. A plan is one round of verification at an assumed acceptance of 0.8 a level, without "
             "the draft model's work.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .speculate = typed<speculate>, .expected_emitted = typed<expected_emitted>,
};

}  // namespace kvatlas::methods
