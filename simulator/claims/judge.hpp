// Published figures beside ours for the same setup, and the verdict, which is always computed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "simulator/claims/setup.hpp"

namespace kvatlas::sim {

enum class Verdict : std::uint8_t { reproduced, reproduced_if, consistent, not_reproduced, undetermined };
inline constexpr int kVerdictCount = static_cast<int>(Verdict::undetermined) + 1;
const char* name_of(Verdict verdict);

/// How far ours may lie from what was published, as a share of it.
inline constexpr double kClaimTolerance = 0.15;

/// The quantity of one side in base units: seconds, bytes, tokens/s, counts, bits.
/// throws Unsupported or InvalidArgument where the deployment cannot exist
double evaluate(const ClaimSide& side);

/// Ours in the unit of the claim: "x", "%", "ms", "us", "s", "byte", "GB", "GiB", "token", "token/s", "bit", "sequence".
/// throws InvalidArgument where quantity, comparison and unit do not fit together
double claimed_figure(const ClaimSetup& setup, double ours, double base, std::string_view unit);

struct Judgement {
  const Claim* claim = nullptr;
  std::optional<double> published, ours, ours_if;
  std::string change;         // of ours_if: one of allowed_changes()
  std::string change_source;  // what is quoted for it
  Verdict verdict = Verdict::undetermined;
  std::string why;            // both sides with their values, or why there is no figure
  std::string assumed;        // what the source does not say and kvatlas chose
  std::optional<double> ratio() const;  // ours / published
};

/// The rule alone. `formula`: both sides are sums of stored bytes.
Verdict verdict_of(std::optional<double> published, std::optional<double> ours, bool formula, std::optional<double> ours_if);

/// `rows`: setups of any claims; those of this claim are used. The first alternative in their order that lands counts.
Judgement judge(const Claim& claim, std::span<const SetupRow> rows);
/// Every claim of the committed table, in its order.
std::vector<Judgement> judge_all();

/// How many claims met which verdict.
struct VerdictShares {
  std::int64_t total = 0;
  std::int64_t of[kVerdictCount] = {};
  void add(Verdict verdict) { ++total, ++of[static_cast<std::size_t>(verdict)]; }
  std::int64_t count(Verdict verdict) const { return of[static_cast<std::size_t>(verdict)]; }
  std::int64_t determined() const { return total - count(Verdict::undetermined); }
};
/// "reproduced as stated: 12 of 80 published figures (15.0 %), 24.0 % of the 50 that can be computed; ..."
std::string to_text(const VerdictShares& shares);

}  // namespace kvatlas::sim
