// First and second moments of a prompt's queries before RoPE, head by head: what is left of them for scores that expect
// future queries to be like past ones.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/linalg/matrix.hpp"
#include "reference/cache.hpp"

namespace kvatlas {

class QueryMoments {
 public:
  enum class Order : std::uint8_t { none, mean, covariance };

  QueryMoments(int q_heads, int dim, Order order, std::int64_t skip);

  /// Adds queries [q_heads, n, dim], token by token in float64, so that chunks cannot change a bit.
  void append(View<const float> q);
  void clear();
  std::int64_t count() const { return count_; }  // tokens that came, skipped ones included
  /// Mean [dim] of one head; zeros when all tokens were skipped.
  std::vector<double> mean(int q_head) const;
  /// E[q q^T] - mean mean^T, divided by the number of tokens; needs Order::covariance.
  linalg::Matrix covariance(int q_head) const;

  /// Bytes of all heads once a token has come.
  static std::int64_t bytes(int q_heads, int dim, Order order);
  void buffers(const std::string& name, std::vector<NamedBuffer>& out) const;
  /// throws InvalidArgument for a wrong size; an absent buffer means that no token has come
  void load(const std::string& name, std::span<const NamedBuffer> saved);

 private:
  std::size_t per_head() const;
  std::int64_t used() const { return count_ > skip_ ? count_ - skip_ : 0; }
  int q_heads_, dim_;
  Order order_;
  std::int64_t skip_, count_ = 0;
  std::vector<double> sums_;  // a head: sum of q [dim], then of the lower triangle of q q^T by rows
};

}  // namespace kvatlas
