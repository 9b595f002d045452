#include "reference/eviction/prefixkv/profile.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace kvatlas::methods::prefixkv_parts {

namespace {

/// Running sums of the scores in falling order.
void to_prefixes(std::vector<double>& scores) {
  std::ranges::sort(scores, std::greater<>());
  std::partial_sum(scores.begin(), scores.end(), scores.begin());
}

}  // namespace

std::vector<std::int64_t> leave_by_prefix(std::vector<std::vector<double>> scores, double target, std::int64_t protect) {
  for (auto& layer : scores) to_prefixes(layer);
  std::vector<std::int64_t> leave(scores.size(), 0);
  double low = 0, high = 1;
  for (int round = 0; round < 64; ++round) {
    const double part = (low + high) / 2;
    double sum = 0;
    for (std::size_t l = 0; l < scores.size(); ++l) {
      const auto& prefix = scores[l];
      const double total = prefix.empty() ? 0.0 : prefix.back();
      const auto at = std::ranges::find_if(prefix, [&](double x) { return x >= part * total; });
      leave[l] = std::max<std::int64_t>(0, static_cast<std::int64_t>(prefix.end() - at) - 1 - protect);
      sum += static_cast<double>(leave[l]);
    }
    if (std::abs(sum - target) < 5) break;
    (sum < target ? high : low) = part;
  }
  return leave;
}

std::vector<std::int64_t> leave_of_share(std::vector<std::vector<double>> scores, double share, std::int64_t protect) {
  std::size_t tokens = 0;
  for (const auto& layer : scores) tokens += layer.size();
  const double target = static_cast<double>(tokens) * share;
  std::vector<std::int64_t> leave = leave_by_prefix(std::move(scores), target, protect);
  double sum = 0;
  for (const std::int64_t n : leave) sum += static_cast<double>(n);
  if (sum > 0)
    for (std::int64_t& n : leave) n = static_cast<std::int64_t>(static_cast<double>(n) * target / sum);
  return leave;
}

}  // namespace kvatlas::methods::prefixkv_parts
