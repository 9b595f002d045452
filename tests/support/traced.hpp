// Runs that show which tokens a cache holds: values carry the number of their token, so kept rows name themselves.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "reference/method.hpp"
#include "tests/support/golden.hpp"

namespace kvatlas::test {

/// Queries and keys of one layer as they enter attention (float32, no rotation), with values that number the tokens.
class Traced {
 public:
  /// q [q_heads, n, dim], k [kv_heads, n, dim]
  Traced(View<const float> q, View<const float> k);
  /// The arrays q and k of a golden case, [1, heads, tokens, dim].
  explicit Traced(const GoldenCase& golden);

  const CacheShape& shape() const { return shape_; }
  View<const float> q() const { return q_.view(); }
  View<const float> k() const { return k_.view(); }
  std::int64_t tokens() const { return q_.dims()[1]; }
  /// A cache of this shape; `setting` as users write it, for example "snapkv:budget=4".
  std::unique_ptr<KvCache> open(const std::string& setting) const;
  /// Runs tokens [first, first + n) through a layer of the cache; returns the outputs [q_heads, n, dim].
  Array run(KvCache& cache, std::int64_t first, std::int64_t n, int layer = 0) const;

 private:
  Traced(Array q, Array k);
  CacheShape shape_;
  Array q_, k_, v_;
};

/// Seeded random queries and keys.
Traced random_traced(int q_heads, int kv_heads, std::int64_t tokens, int dim, std::uint64_t seed);

/// Tokens that one row owner (kv head, or query head) of layer 0 holds, in slot order.
std::vector<std::int64_t> tokens_held(const KvCache& cache, int head);
/// The same of all row owners, one after the other.
std::vector<std::int64_t> tokens_held(const KvCache& cache);
/// The float32 of num::from_mass of a word buffer of layer 0, all row owners.
std::vector<float> masses_held(const KvCache& cache);

}  // namespace kvatlas::test
