// How sure a recommendation is: rates drawn from their intervals say how often each choice is the best, what choosing it costs on
// average, and which one measurement would save most of that.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sweeps/recommend.hpp"

namespace kvatlas::sweep {

inline constexpr int kChanceDraws = 1024;

/// A rate with its 80% interval. A format that nobody timed has no best guess between the released and the ideal kernel: `bounds`
/// centres its draws in the middle of its interval (by ratio), else half of them lie below `rate`.
struct UncertainRate {
  double rate = 0, low = 0, high = 0;
  double own = 1;        // share of the error's variance that no other choice shares, 0 to 1
  bool bounds = false;
};

struct ChanceFigures {
  std::vector<Chance> of{};      // by choice
  std::size_t measure = 0;       // the choice whose own error is worth knowing most
  double regret = 0;             // of the choice that loses least on average
  double regret_measured = 0;    // the same once that error is known
};

/// Draws `kChanceDraws` times: one error that all share and one of each choice's own, both normal in the logarithm of the rate. The same
/// seed gives the same bits. throws InvalidArgument for a rate outside its interval or none at all
ChanceFigures sample_chances(std::span<const UncertainRate> choices, std::uint64_t seed);

/// Fills the chances of settings that speak for their method: of those that may be advised among each other, of the others among all;
/// and names the measurement that tells most about the former.
void add_chances(const RecommendRequest& request, std::vector<Recommendation>& ranked, RecommendReport& report);

}  // namespace kvatlas::sweep
