#include "reference/primitives/eviction/query_moments.hpp"

#include <algorithm>
#include <cstring>

#include "core/errors.hpp"

namespace kvatlas {

namespace {

std::size_t values_of(int dim, QueryMoments::Order order) {
  const auto d = static_cast<std::size_t>(dim);
  if (order == QueryMoments::Order::none) return 0;
  return order == QueryMoments::Order::mean ? d : d + d * (d + 1) / 2;
}

}  // namespace

QueryMoments::QueryMoments(int q_heads, int dim, Order order, std::int64_t skip)
    : q_heads_(q_heads), dim_(dim), order_(order), skip_(skip), sums_(static_cast<std::size_t>(q_heads) * values_of(dim, order), 0.0) {}

std::size_t QueryMoments::per_head() const { return values_of(dim_, order_); }

std::int64_t QueryMoments::bytes(int q_heads, int dim, Order order) {
  if (order == Order::none) return 0;
  return static_cast<std::int64_t>(sizeof(std::int64_t) + static_cast<std::size_t>(q_heads) * values_of(dim, order) * sizeof(double));
}

void QueryMoments::append(View<const float> q) {
  if (order_ == Order::none) return;
  for (std::int64_t i = 0; i < q.dim(1); ++i, ++count_) {
    if (count_ < skip_) continue;
    for (int h = 0; h < q_heads_; ++h) {
      const auto row = q.row(h, i);
      double* to = sums_.data() + static_cast<std::size_t>(h) * per_head();
      for (const float x : row) *to++ += static_cast<double>(x);
      if (order_ != Order::covariance) continue;
      for (std::size_t a = 0; a < row.size(); ++a)
        for (std::size_t b = 0; b <= a; ++b) *to++ += static_cast<double>(row[a]) * static_cast<double>(row[b]);  // products are exact
    }
  }
}

void QueryMoments::clear() {
  std::ranges::fill(sums_, 0.0);
  count_ = 0;
}

std::vector<double> QueryMoments::mean(int q_head) const {
  const double* from = sums_.data() + static_cast<std::size_t>(q_head) * per_head();
  std::vector<double> out(from, from + dim_);
  for (double& x : out) x = used() > 0 ? x / static_cast<double>(used()) : 0.0;
  return out;
}

linalg::Matrix QueryMoments::covariance(int q_head) const {
  KV_ASSERT(order_ == Order::covariance, "only a covariance holds products");
  const std::vector<double> m = mean(q_head);
  const double* from = sums_.data() + static_cast<std::size_t>(q_head) * per_head() + dim_;
  linalg::Matrix c(m.size(), m.size());
  for (std::size_t a = 0; a < m.size(); ++a)
    for (std::size_t b = 0; b <= a; ++b) {
      const double product = *from++;
      c(a, b) = c(b, a) = used() > 0 ? product / static_cast<double>(used()) - m[a] * m[b] : 0.0;
    }
  return c;
}

void QueryMoments::buffers(const std::string& name, std::vector<NamedBuffer>& out) const {
  if (order_ == Order::none || count_ == 0) return;
  NamedBuffer b{.name = name, .component = "query_moments", .side = Side::both, .scope = Scope::layer, .bytes = {}};
  b.bytes.resize(static_cast<std::size_t>(bytes(q_heads_, dim_, order_)));
  std::memcpy(b.bytes.data(), &count_, sizeof count_);
  std::memcpy(b.bytes.data() + sizeof count_, sums_.data(), sums_.size() * sizeof(double));
  out.push_back(std::move(b));
}

void QueryMoments::load(const std::string& name, std::span<const NamedBuffer> saved) {
  clear();
  const auto found = std::ranges::find(saved, name, &NamedBuffer::name);
  if (found == saved.end()) return;
  if (static_cast<std::int64_t>(found->bytes.size()) != bytes(q_heads_, dim_, order_))
    throw InvalidArgument(cat("buffer ", name, " has ", found->bytes.size(), " bytes, must have ", bytes(q_heads_, dim_, order_)));
  std::memcpy(&count_, found->bytes.data(), sizeof count_);
  std::memcpy(sums_.data(), found->bytes.data() + sizeof count_, sums_.size() * sizeof(double));
}

}  // namespace kvatlas
