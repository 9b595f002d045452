#include "reference/eviction/sparse_dllm/importance.hpp"

#include <algorithm>

#include "core/arith.hpp"
#include "core/parallel.hpp"
#include "reference/primitives/pooling.hpp"

namespace kvatlas::methods::sparse_dllm_parts {

Block block_of(std::int64_t tokens, std::int64_t size, std::int64_t behind) {
  const std::int64_t after = std::clamp<std::int64_t>(tokens - 1, 0, behind), held = std::min(size, tokens - after);
  return {.first = tokens - after - held, .size = held};
}

namespace {

std::vector<float> mean_query(View<const float> q, std::int64_t head) {
  std::vector<float> mean(static_cast<std::size_t>(q.dim(2)));
  for (std::size_t i = 0; i < mean.size(); ++i) {
    double sum = 0;
    for (std::int64_t t = 0; t < q.dim(1); ++t) sum += static_cast<double>(q(head, t, static_cast<std::int64_t>(i)));
    mean[i] = static_cast<float>(sum / static_cast<double>(q.dim(1)));
  }
  return mean;
}

}  // namespace

std::vector<float> importance(const LayerClass& c, View<const float> q, const TokenRows& rows, const Block& block, int kernel) {
  std::vector<std::vector<double>> groups(static_cast<std::size_t>(c.kv_heads));
  parallel_for(c.kv_heads, [&](std::int64_t h) {
    const Array keys = rows.keys(static_cast<int>(h));
    auto& sums = groups[static_cast<std::size_t>(h)];
    sums.assign(static_cast<std::size_t>(keys.dims()[0]), 0.0);
    for (std::int64_t g = 0; g < c.q_per_kv(); ++g) {
      const std::vector<float> mean = mean_query(q, h * c.q_per_kv() + g);
      for (std::size_t t = 0; t < sums.size(); ++t) sums[t] += static_cast<double>(num::lane_dot(keys.view().row(static_cast<std::int64_t>(t)), mean));
    }
  });
  std::vector<float> scores;
  for (std::int64_t t = 0; t < rows.count(0); ++t) {
    if (t >= block.first && t < block.first + block.size) continue;
    double sum = 0;
    for (const auto& group : groups) sum += group[static_cast<std::size_t>(t)];
    scores.push_back(static_cast<float>(sum / static_cast<double>(c.q_heads)));
  }
  return pool(scores, Pooling::max, kernel);
}

}  // namespace kvatlas::methods::sparse_dllm_parts
