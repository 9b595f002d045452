// chunk: a prompt is cut in pieces; each piece is scored by itself and keeps the same share of its tokens.
// Source    sheet part 3.3, chunk; kvpress chunk_press.py
// Keeps     of every chunk_length tokens the share 1 - compression_ratio, at least one; keys after RoPE at true positions
// Deviates  nowhere; scores by attention of the last queries are not offered, they would need those of every piece
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/pieces.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  double compression_ratio = 0.5;
  Tokens chunk_length = 1024_tok;
  KeyScore score = KeyScore::keydiff;
  static constexpr auto fields() {
    return std::tuple{field(&Params::compression_ratio, "compression_ratio", "", 0, 1, "share of each piece that leaves; one token always stays"),
                      field(&Params::chunk_length, "chunk_length", "token", 1, 1 << 20, "tokens of one piece"),
                      choice(&Params::score, "score", kKeyScoreNames, "what ranks the tokens of a piece")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "chunk", .budget = 1_tok};
  r.scorer = {.score = [p, base = scorer_of(p.score)](const Scene& scene) {
                return choose_by_chunks(base, scene, p.chunk_length.value, p.compression_ratio);
              },
              .charge = scorer_of(p.score).charge};
  r.layer_budget = [p](const Place&, std::int64_t rows) { return chunks_keep(rows, p.chunk_length.value, p.compression_ratio); };
  return r;
}

}  // namespace

extern constinit const Method chunk{
    .slug = "chunk", .name = "Chunk press", .family = Family::eviction,
    .paper = {.title = "kvpress: LLM KV cache compression made easy", .url = "https://github.com/NVIDIA/kvpress", .year = 2024},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "compression_ratio=0",
    .notes = "A piece keeps trunc(tokens * (1 - compression_ratio)) in float64, so a ratio such as 0.9 may keep one token less than "
             "the exact product says. Every piece is served alike, whatever it holds.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods
