#include "answers/storage.hpp"

#include "answers/spell.hpp"
#include "core/errors.hpp"
#include "simulator/engine.hpp"

namespace kvatlas::answers {

Storage storage(const Recipe& recipe, const CacheShape& shape, const History& h, bool released) {
  Storage a;
  a.json = {{"ledger", nullptr}, {"total_bytes", nullptr}, {"peak_bytes", nullptr}, {"dense_bytes", nullptr},
            {"bits_per_value", nullptr}, {"bits", nullptr}, {"page_padding_bytes", nullptr}, {"temporary_bytes", nullptr}, {"size_factor", nullptr},
            {"plan", nullptr}, {"prefill_plan", nullptr}};
  if (auto reason = recipe.why_not(shape)) {
    a.refusal = *reason;
    return a;
  }
  const BoundRecipe bound = recipe.bind(shape);
  const Ledger ledger = bound.ledger(h);
  const std::int64_t dense = dense_bytes(shape, h.tokens()).value * h.sequences, stored = ledger.total().value;
  const double values = static_cast<double>(dense) / bytes_of(shape.dtype);
  const double bits = static_cast<double>(stored) * 8 / values, factor = static_cast<double>(dense) / static_cast<double>(stored);
  const Plan step = released ? bound.released_decode_plan(h) : bound.decode_plan(h);
  a.bits = bits_by_kind(recipe, shape, h, sim::default_engine().page.value, step);
  a.json["ledger"] = ledger_rows(ledger, "computed");
  for (Json& row : a.json["ledger"]) row["bits_per_value"] = a.bits.bits(row["bytes"].get<double>());
  a.json["total_bytes"] = stored;
  a.json["peak_bytes"] = ledger.peak().value;
  a.json["dense_bytes"] = dense;
  a.json["bits_per_value"] = values > 0 ? Json(bits) : Json(nullptr);
  Json kinds = Json::object();
  for (int i = 0; i < kBitKindCount; ++i) kinds[name_of(static_cast<BitKind>(i))] = a.bits.bits(a.bits.bytes[static_cast<std::size_t>(i)]);
  a.json["bits"] = std::move(kinds);
  a.json["page_padding_bytes"] = a.bits.page_padding_bytes;
  a.json["temporary_bytes"] = a.bits.temporary_bytes;
  a.json["size_factor"] = stored > 0 ? Json(factor) : Json(nullptr);
  a.json["plan"] = plan_rows(step);
  a.json["prefill_plan"] = plan_rows(bound.prefill_plan(h));
  a.formulas = {cat("bits_per_value = 8 x ", spell_count(static_cast<double>(stored)), " bytes stored / ", spell_count(values), " values = ", spell_number(bits)),
                cat("size_factor = ", spell_count(static_cast<double>(dense)), " bytes in ", name_of(shape.dtype), " / ", spell_count(static_cast<double>(stored)),
                    " bytes stored = ", spell_number(factor))};
  a.formulas.insert(a.formulas.end(), a.bits.formulas.begin(), a.bits.formulas.end());
  return a;
}

}  // namespace kvatlas::answers
