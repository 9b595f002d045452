#include "answers/bits.hpp"

#include <algorithm>

#include "answers/spell.hpp"
#include "core/errors.hpp"

namespace kvatlas::answers {

namespace {

double as_double(std::int64_t n) { return static_cast<double>(n); }

/// The method of one side where one rule serves every layer and codes its sides row by row.
const MethodChoice* coder(const Recipe& recipe, Side side) {
  if (recipe.rules().size() != 1 || recipe.sinks().value > 0 || recipe.recent().value > 0) return nullptr;
  const Rule& rule = recipe.rules().front();
  const MethodChoice& m = side == Side::key ? rule.key : rule.value;
  return m.method->side_layout != nullptr ? &m : nullptr;
}

}  // namespace

BitsByKind bits_by_kind(const Recipe& recipe, const CacheShape& shape, const History& h, std::int64_t page, const Plan& step) {
  const BoundRecipe bound = recipe.bind(shape);
  const Ledger ledger = bound.ledger(h);
  BitsByKind b;
  b.values = as_double(dense_bytes(shape, h.tokens()).value) * h.sequences / bytes_of(shape.dtype);
  const auto of = [&](BitKind kind) -> double& { return b.bytes[static_cast<std::size_t>(kind)]; };
  for (const LedgerEntry& e : ledger.entries()) of(kind_of_component(e.component)) += as_double(e.bytes.value);

  // Codes and what describes them as the format states them: the rest of a coded side's bytes only fills words and blocks.
  for (const Side side : {Side::key, Side::value}) {
    const MethodChoice* m = coder(recipe, side);
    if (m == nullptr) continue;
    double stated_codes = 0, stated_metadata = 0, coded_bytes = 0, described_bytes = 0;
    std::vector<std::string> lines;
    for (const LayerClass& c : shape.classes) {
      if (c.kind != RowKind::kv) continue;
      const Tokens tokens = c.visible(h.tokens());
      const SideLayout l = m->method->side_layout(m->row, c, side, shape.dtype, tokens);
      const int dim = side == Side::key ? c.k_dim : c.v_dim;
      const std::int64_t rows = std::int64_t{c.count()} * c.kv_heads * h.sequences;
      const double coded = as_double((tokens - l.plain).value) * as_double(rows) * dim;
      if (l.format.kind == CodeKind::plain) continue;
      stated_codes += coded * l.format.bits / 8;
      if (l.format.group_size > 0) stated_metadata += coded / l.format.group_size * l.format.group_bits / 8;
      std::string line = cat(side == Side::key ? "keys" : "values", ": ", spell_count(as_double((tokens - l.plain).value)), " tokens x ", c.count(), " layers x ", c.kv_heads, " heads x ", dim,
                             h.sequences > 1 ? cat(" x ", h.sequences, " sequences") : "", " as ", name_of(l.format), " = ", spell_count(coded), " values x ", l.format.bits);
      if (l.format.group_size > 0)
        line += cat(" bits, and ", l.format.group_bits, " bits for ", l.format.group_size, " of them: ", spell_number(l.format.bits_per_value()), " bits a coded value");
      else
        line += " bits";
      if (l.plain.value > 0) line += cat("; ", spell_count(as_double(l.plain.value)), " tokens stay in ", name_of(shape.dtype));
      lines.push_back(std::move(line));
    }
    bool plain_codes = true;  // the ledger has the parts that the format states, nothing like a low-rank part or sketches beside them
    for (const LedgerEntry& e : ledger.entries()) {
      if (e.side != side) continue;
      const BitKind kind = kind_of_component(e.component);
      if (kind == BitKind::codes && e.component != "codes" && e.component != "blocks") plain_codes = false;
      if (kind == BitKind::codes) coded_bytes += as_double(e.bytes.value);
      if (kind == BitKind::scales || kind == BitKind::zeros) described_bytes += as_double(e.bytes.value);
    }
    if (stated_codes <= 0 || coded_bytes < stated_codes) continue;
    if (!plain_codes)
      for (std::string& line : lines) line += ", the format whose bytes and speed its kernels are given";
    b.formulas.insert(b.formulas.end(), lines.begin(), lines.end());
    if (!plain_codes) continue;
    // A component that holds codes and scales together (blocks) is split; what neither explains is padding.
    const double inside = described_bytes > 0 ? 0 : std::min(stated_metadata, coded_bytes - stated_codes);
    const double padding = coded_bytes - stated_codes - inside;
    of(BitKind::codes) -= inside + padding;
    of(BitKind::scales) += inside;
    of(BitKind::padding) += padding;
  }

  b.page = page;
  History paged = h;
  paged.generated += Tokens(round_up(h.tokens().value, page) - h.tokens().value);
  b.page_padding_bytes = std::max(0.0, as_double(bound.ledger(paged).total().value - ledger.total().value));
  for (const KernelCall& c : step.calls())
    if (c.stage == Stage::attention || c.stage == Stage::select) b.temporary_bytes = std::max(b.temporary_bytes, as_double(c.traffic.write_bytes));
  b.prompt_bytes = as_double((ledger.peak() - ledger.total()).value);

  const std::string over = cat(" / ", spell_count(b.values), " values = ");
  for (int i = 0; i < kBitKindCount; ++i) {
    const double bytes = b.bytes[static_cast<std::size_t>(i)];
    if (bytes > 0) b.formulas.push_back(cat(name_of(static_cast<BitKind>(i)), " = 8 x ", spell_count(bytes), " bytes", over, spell_number(b.bits(bytes)), " bits"));
  }
  const double peak = as_double(ledger.peak().value);
  b.formulas.push_back(cat("peak = 8 x (", spell_count(as_double(ledger.total().value)), " bytes stored + ", spell_count(b.prompt_bytes),
                           " bytes of the prompt until it is compressed)", over, spell_number(b.bits(peak)), " bits"));
  return b;
}

}  // namespace kvatlas::answers
