#include "reference/merging/d2o/parts.hpp"

#include <algorithm>

#include "core/arith64.hpp"

namespace kvatlas::methods::d2o_parts {

double unevenness(const std::vector<std::vector<std::uint64_t>>& masses) {
  std::vector<double> variances;
  for (const auto& head : masses) {
    const auto n = static_cast<double>(head.size());
    double sum = 0, squares = 0;
    for (const std::uint64_t m : head) sum += static_cast<double>(m) * 0x1p-31;
    for (const std::uint64_t m : head) {
      const double d = static_cast<double>(m) * 0x1p-31 - sum / n;
      squares += d * d;
    }
    variances.push_back(head.size() > 1 ? squares / (n - 1) : 0.0);
  }
  const auto [least, most] = std::ranges::minmax(variances);
  double mean = 0;
  for (const double v : variances) mean += (v - least) / (most - least + 1e-6);
  return mean / static_cast<double>(variances.size());
}

std::vector<double> layer_shares(const std::vector<double>& unevenness, double mean) {
  std::vector<double> shares;
  double sum = 0;
  for (const double f : unevenness) {
    shares.push_back(num::exp(-f));
    sum += shares.back();
  }
  for (double& s : shares) s = std::clamp(s / sum * static_cast<double>(unevenness.size()) * mean, 0.01, 1.0);
  return shares;
}

std::vector<bool> pass(const Gate& gate, const std::vector<Nearest>& heads, float& threshold) {
  const std::size_t leaving = heads.front().cosine.size();
  const auto count = static_cast<double>(heads.size());
  std::vector<float> means;
  double all = 0;
  for (const Nearest& head : heads)
    for (const float u : head.cosine) all += static_cast<double>(u);
  for (std::size_t i = 0; i < leaving; ++i) {
    double sum = 0;
    for (const Nearest& head : heads) sum += static_cast<double>(head.cosine[i]);
    means.push_back(static_cast<float>(sum / count));
  }
  const double mean = all / (count * static_cast<double>(leaving));
  threshold = static_cast<float>(threshold == Gate::kNone ? mean : gate.alpha * static_cast<double>(threshold) + gate.beta * mean);
  std::vector<bool> merges;
  for (const float m : means) merges.push_back(m >= threshold);
  return merges;
}

std::vector<std::vector<float>> merged_rows(View<const float> rows, const Slots& kept, const Slots& leaving, const Nearest& nearest, const std::vector<bool>& merges,
                                            Weights weights) {
  std::vector<std::vector<float>> out(kept.size());
  std::vector<std::vector<double>> sums(kept.size());
  std::vector<double> divisors(kept.size(), 0.0);
  const double own = weights == Weights::paper ? num::exp(1.0) : 1.0;
  for (std::size_t i = 0; i < leaving.size(); ++i) {
    if (!merges[i]) continue;
    const auto at = static_cast<std::size_t>(nearest.target[i]);
    if (sums[at].empty()) {
      for (const float x : rows.row(kept[at])) sums[at].push_back(own * static_cast<double>(x));
      divisors[at] = own;
    }
    const double u = static_cast<double>(nearest.cosine[i]), w = weights == Weights::paper ? num::exp(u) : u;
    const auto row = rows.row(leaving[i]);
    for (std::size_t c = 0; c < row.size(); ++c) sums[at][c] += w * static_cast<double>(row[c]);
    divisors[at] += weights == Weights::paper ? w : 1.0;
  }
  for (std::size_t at = 0; at < kept.size(); ++at)
    for (const double s : sums[at]) out[at].push_back(static_cast<float>(s / divisors[at]));
  return out;
}

}  // namespace kvatlas::methods::d2o_parts
