#include "simulator/claims/judge.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <fmt/core.h>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::sim {

namespace {

constexpr std::array<const char*, kVerdictCount> kVerdicts{"reproduced", "reproduced_if", "consistent", "not_reproduced", "undetermined"};

std::optional<double> number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

bool lands(double published, double ours) { return std::fabs(ours - published) <= kClaimTolerance * std::fabs(published); }

/// A figure with the unit that people read.
std::string spell(ClaimQuantity quantity, double value) {
  const std::string_view name = name_of(quantity);
  if (name.ends_with("tokens_per_s")) return fmt::format("{:.4g} tokens/s", value);
  if (name.ends_with("_s")) return value < 1e-3 ? fmt::format("{:.4g} us", value * 1e6) : value < 1 ? fmt::format("{:.4g} ms", value * 1e3) : fmt::format("{:.4g} s", value);
  if (name.ends_with("bytes")) return value < 1e6 ? fmt::format("{:.0f} bytes", value) : fmt::format("{:.4g} GB", value / 1e9);
  if (name.starts_with("bits")) return fmt::format("{:.4g} bits", value);
  return fmt::format("{:.0f}{}", value, quantity == ClaimQuantity::max_batch ? " sequences" : " tokens");
}

std::string side_text(const ClaimSide& side, double value) {
  std::string text = cat(side.recipe, side.released ? " as released" : "", side.engine.empty() ? "" : cat(" in ", side.engine), " ", spell(side.quantity, value));
  return text;
}

struct Evaluated {
  double figure = 0;
  std::string text;
  bool formula = false;
};

Evaluated evaluate_setup(const ClaimSetup& setup, std::string_view unit) {
  const double ours = evaluate(setup.ours);
  Evaluated e;
  e.text = cat(name_of(setup.ours.quantity), ": ", side_text(setup.ours, ours));
  // Where the content decides how many bytes there are, ours is a prediction and no copy of a formula.
  const auto formula = [](const ClaimSide& side) { return is_byte_formula(side.quantity) && !Recipe::parse(side.recipe).main().data_dependent; };
  e.formula = formula(setup.ours);
  double base = 0;
  if (setup.compare != Compare::value) {
    base = evaluate(setup.base);
    if (!(ours > 0) || !(base > 0)) throw Unsupported(cat(name_of(setup.ours.quantity), " is 0 on one side: there is no ratio"));
    e.text += cat("; against ", setup.base.quantity == setup.ours.quantity ? "" : cat(name_of(setup.base.quantity), " of "), side_text(setup.base, base));
    e.formula = e.formula && formula(setup.base);
  }
  e.figure = claimed_figure(setup, ours, base, unit);
  return e;
}

}  // namespace

const char* name_of(Verdict verdict) { return kVerdicts[static_cast<std::size_t>(verdict)]; }

std::optional<double> Judgement::ratio() const {
  if (!published || !ours || *published == 0) return std::nullopt;
  return *ours / *published;
}

Verdict verdict_of(std::optional<double> published, std::optional<double> ours, bool formula, std::optional<double> ours_if) {
  if (!published || !ours) return Verdict::undetermined;
  if (lands(*published, *ours)) return formula ? Verdict::consistent : Verdict::reproduced;
  if (ours_if && lands(*published, *ours_if)) return Verdict::reproduced_if;
  return Verdict::not_reproduced;
}

Judgement judge(const Claim& claim, std::span<const SetupRow> rows) {
  Judgement j;
  j.claim = &claim;
  j.published = number(claim.published);
  const auto is_stated = [&](const SetupRow& r) { return r.change.empty() && r.belongs_to(claim); };
  const auto stated = std::find_if(rows.begin(), rows.end(), is_stated);
  if (stated == rows.end()) return j.why = "no machine-readable setup", j;
  if (!j.published) return j.why = cat("the published figure \"", claim.published, "\" is not a number"), j;
  const SetupKeys keys = parse_spec(stated->spec);
  const ClaimSetup setup = make_setup(keys);
  if (setup.ours.quantity == ClaimQuantity::none) return j.why = stated->note, j;
  j.assumed = setup.assumed;
  bool formula = false;
  try {
    Evaluated e = evaluate_setup(setup, claim.unit);
    j.ours = e.figure;
    j.why = std::move(e.text);
    formula = e.formula;
  } catch (const Unsupported& e) {
    return j.why = cat("cannot be computed: ", e.what()), j;
  }
  if (!j.assumed.empty()) j.why += cat("; chosen by kvatlas, the source does not say: ", j.assumed);
  if (!stated->note.empty()) j.why += cat("; ", stated->note);
  if (!lands(*j.published, *j.ours))
    for (const SetupRow& r : rows) {
      if (r.change.empty() || !r.belongs_to(claim)) continue;
      SetupKeys changed = keys;
      for (const auto& [key, value] : parse_spec(r.spec)) changed[key] = value;
      try {
        const Evaluated e = evaluate_setup(make_setup(changed), claim.unit);
        const bool landed = lands(*j.published, e.figure);
        j.why += cat("; with ", r.change, " (", r.note, ") ", fmt::format("{:.4g}", e.figure), " ", claim.unit, " from ", e.text);
        if (!landed) continue;
        j.ours_if = e.figure;
        j.change = r.change;
        j.change_source = r.note;
        break;
      } catch (const Unsupported& e) {
        j.why += cat("; with ", r.change, " it cannot be computed: ", e.what());
      }
    }
  j.verdict = verdict_of(j.published, j.ours, formula, j.ours_if);
  return j;
}

std::vector<Judgement> judge_all() {
  std::vector<Judgement> all;
  for (const Claim& c : all_claims()) all.push_back(judge(c, all_setups()));
  return all;
}

std::string to_text(const VerdictShares& s) {
  const auto percent = [](std::int64_t n, std::int64_t of) { return of > 0 ? fmt::format("{:.1f} %", 100.0 * static_cast<double>(n) / static_cast<double>(of)) : std::string("none"); };
  const std::int64_t stated = s.count(Verdict::reproduced);
  std::string text = cat("reproduced as stated: ", stated, " of ", s.total, " published figures (", percent(stated, s.total), "), ", percent(stated, s.determined()), " of the ",
                         s.determined(), " that can be computed; the others:");
  for (int i = 1; i < kVerdictCount; ++i) {
    const auto v = static_cast<Verdict>(i);
    text += cat(i > 1 ? "," : "", " ", name_of(v), " ", s.count(v), " (", percent(s.count(v), s.total), ")");
  }
  return text;
}

}  // namespace kvatlas::sim
