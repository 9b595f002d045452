#include "tests/support/attention_layer.hpp"

#include <algorithm>
#include <cmath>

#include "core/errors.hpp"
#include "core/rope.hpp"
#include "tests/support/scenario.hpp"

namespace kvatlas::test {

namespace {

/// w x + b for every token.
Matrix project(const Matrix& x, const TensorMap& weights, const char* w, const char* bias) {
  Matrix out = linalg::matmul(x, linalg::transpose(matrix_of(weights, w)));
  if (const auto b = weights.find(bias); b != weights.end())
    for (std::size_t t = 0; t < out.rows(); ++t)
      for (std::size_t i = 0; i < out.cols(); ++i) out(t, i) += static_cast<double>(b->second.values[i]);
  return out;
}

/// Rotates channels [first, first + spec.rotary_dim) of every row at position = row.
void rotate(Matrix& rows, std::size_t first, RopeSpec spec) {
  spec.first_channel = 0;
  const RopeTable table(spec);
  std::vector<float> part(static_cast<std::size_t>(spec.rotary_dim));
  for (std::size_t t = 0; t < rows.rows(); ++t) {
    for (std::size_t i = 0; i < part.size(); ++i) part[i] = static_cast<float>(rows(t, first + i));
    table.apply(part, static_cast<std::int64_t>(t));
    for (std::size_t i = 0; i < part.size(); ++i) rows(t, first + i) = static_cast<double>(part[i]);
  }
}

/// softmax(scale q k^T) v with a causal mask; columns [q_at, q_at + dim) of q and so on.
void attend(const Matrix& q, std::size_t q_at, const Matrix& k, std::size_t k_at, std::size_t dim, const Matrix& v, std::size_t v_at,
            std::size_t v_dim, double scale, Matrix& out, std::size_t out_at) {
  for (std::size_t t = 0; t < q.rows(); ++t) {
    std::vector<double> x(t + 1);
    for (std::size_t s = 0; s <= t; ++s) {
      double dot = 0.0;
      for (std::size_t i = 0; i < dim; ++i) dot += q(t, q_at + i) * k(s, k_at + i);
      x[s] = dot * scale;
    }
    const double top = *std::ranges::max_element(x);
    double sum = 0.0;
    for (double& f : x) sum += (f = std::exp(f - top));
    for (std::size_t s = 0; s <= t; ++s)
      for (std::size_t i = 0; i < v_dim; ++i) out(t, out_at + i) += x[s] / sum * v(s, v_at + i);
  }
}

struct Widths {
  std::size_t k_dim, v_dim, rank, rope, row;
};
Widths widths(const Conversion& conversion, const LayerClass& original) {
  const LayerClass& c = conversion.shape.classes.front();
  return {static_cast<std::size_t>(original.k_dim), static_cast<std::size_t>(original.v_dim), static_cast<std::size_t>(c.v_dim),
          static_cast<std::size_t>(c.rope.rotary_dim), static_cast<std::size_t>(c.k_dim)};
}

}  // namespace

Matrix matrix_of(const TensorMap& tensors, const char* name) {
  const auto at = tensors.find(name);
  if (at == tensors.end()) throw InvalidArgument(cat("no tensor \"", name, "\""));
  const auto cols = static_cast<std::size_t>(at->second.dims.back());
  return {at->second.values.size() / cols, cols, {at->second.values.begin(), at->second.values.end()}};
}

Matrix original_layer(const Matrix& x, const TensorMap& weights, const LayerClass& c) {
  Matrix q = project(x, weights, "w_q", "b_q"), k = project(x, weights, "w_k", "b_k");
  const Matrix v = project(x, weights, "w_v", "b_v");
  const auto d = static_cast<std::size_t>(c.k_dim), e = static_cast<std::size_t>(c.v_dim), heads = static_cast<std::size_t>(c.q_heads);
  for (std::size_t h = 0; h < heads; ++h) rotate(q, h * d, c.rope);
  for (std::size_t h = 0; h < static_cast<std::size_t>(c.kv_heads); ++h) rotate(k, h * d, c.rope);
  Matrix out(x.rows(), heads * e);
  for (std::size_t h = 0; h < heads; ++h) {
    const std::size_t from = h / static_cast<std::size_t>(c.q_per_kv());
    attend(q, h * d, k, from * d, d, v, from * e, e, 1.0 / std::sqrt(static_cast<double>(d)), out, h * e);
  }
  return linalg::matmul(out, linalg::transpose(matrix_of(weights, "w_o")));
}

Matrix converted_layer(const Matrix& x, const Conversion& conversion, const LayerClass& original) {
  const LayerClass& c = conversion.shape.classes.front();
  const Widths w = widths(conversion, original);
  const auto heads = static_cast<std::size_t>(c.q_heads);
  Matrix q = project(x, conversion.weights, "q", "q_bias"), row = project(x, conversion.weights, "kv_a", "kv_a_bias");
  const Matrix up = matrix_of(conversion.weights, "kv_b");
  rotate(row, w.rank, c.rope);
  Matrix out(x.rows(), heads * w.v_dim);
  for (std::size_t h = 0; h < heads; ++h) {
    rotate(q, h * (w.k_dim + w.rope) + w.k_dim, c.rope);
    Matrix k(x.rows(), w.k_dim + w.rope), v(x.rows(), w.v_dim);
    for (std::size_t t = 0; t < x.rows(); ++t) {
      for (std::size_t i = 0; i < w.k_dim; ++i)
        for (std::size_t r = 0; r < w.rank; ++r) k(t, i) += up(h * (w.k_dim + w.v_dim) + i, r) * row(t, r);
      for (std::size_t i = 0; i < w.rope; ++i) k(t, w.k_dim + i) = row(t, w.rank + i);
      for (std::size_t i = 0; i < w.v_dim; ++i)
        for (std::size_t r = 0; r < w.rank; ++r) v(t, i) += up(h * (w.k_dim + w.v_dim) + w.k_dim + i, r) * row(t, r);
    }
    attend(q, h * (w.k_dim + w.rope), k, 0, w.k_dim + w.rope, v, 0, w.v_dim, c.score_scale, out, h * w.v_dim);
  }
  return linalg::matmul(out, linalg::transpose(matrix_of(conversion.weights, "o")));
}

Matrix absorbed_layer(const Matrix& x, const Conversion& conversion, const LayerClass& original, KvCache& cache, std::int64_t prompt) {
  const LayerClass& c = conversion.shape.classes.front();
  const Widths w = widths(conversion, original);
  const Matrix q = project(x, conversion.weights, "q", "q_bias"), row = project(x, conversion.weights, "kv_a", "kv_a_bias");
  const Matrix up = matrix_of(conversion.weights, "kv_b");
  const auto tokens = static_cast<std::int64_t>(x.rows());
  Matrix heads(x.rows(), static_cast<std::size_t>(c.q_heads) * w.v_dim);
  for (std::int64_t first = 0; first < tokens;) {
    const std::int64_t n = first == 0 ? prompt : 1;
    Array queries({c.q_heads, n, c.k_dim}), rows({1, n, c.k_dim}), out({c.q_heads, n, c.v_dim});
    std::vector<std::int64_t> positions;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto t = static_cast<std::size_t>(first + i);
      positions.push_back(first + i);
      for (std::size_t r = 0; r < w.row; ++r) rows.view()(0, i, static_cast<std::int64_t>(r)) = static_cast<float>(row(t, r));
      for (std::size_t h = 0; h < static_cast<std::size_t>(c.q_heads); ++h) {
        const std::span<float> absorbed = queries.view().row(static_cast<std::int64_t>(h), i);
        for (std::size_t r = 0; r < w.rank; ++r) {
          double sum = 0.0;
          for (std::size_t k = 0; k < w.k_dim; ++k) sum += up(h * (w.k_dim + w.v_dim) + k, r) * q(t, h * (w.k_dim + w.rope) + k);
          absorbed[r] = static_cast<float>(sum);
        }
        for (std::size_t k = 0; k < w.rope; ++k) absorbed[w.rank + k] = static_cast<float>(q(t, h * (w.k_dim + w.rope) + w.k_dim + k));
      }
    }
    cache.forward(c.layers.front(), {.q = queries.view(), .k = rows.view(), .v = {}, .positions = {positions.data(), {n}}}, out.view());
    if (first == 0) cache.end_prefill();
    for (std::int64_t i = 0; i < n; ++i)
      for (std::size_t h = 0; h < static_cast<std::size_t>(c.q_heads); ++h)
        for (std::size_t k = 0; k < w.v_dim; ++k) {
          double sum = 0.0;
          for (std::size_t r = 0; r < w.rank; ++r)
            sum += up(h * (w.k_dim + w.v_dim) + w.k_dim + k, r) *
                   static_cast<double>(out.view()(static_cast<std::int64_t>(h), i, static_cast<std::int64_t>(r)));
          heads(static_cast<std::size_t>(first + i), h * w.v_dim + k) = sum;
        }
    first += n;
  }
  return linalg::matmul(heads, linalg::transpose(matrix_of(conversion.weights, "o")));
}

Matrix random_inputs(std::int64_t tokens, std::int64_t hidden, std::uint64_t seed) {
  Random random(seed);
  Matrix x(static_cast<std::size_t>(tokens), static_cast<std::size_t>(hidden));
  for (std::size_t t = 0; t < x.rows(); ++t)
    for (double& f : x.row(t)) f = static_cast<double>(random.normal());
  return x;
}

TensorMap random_layer(const LayerClass& c, std::int64_t hidden, std::int64_t tokens, std::uint64_t seed, bool biases) {
  Random random(seed);
  TensorMap out;
  const auto add = [&](const char* name, std::vector<std::int64_t> dims) {
    std::int64_t n = 1;
    for (const std::int64_t d : dims) n *= d;
    NamedTensor t{.dims = std::move(dims), .values = {}};
    for (std::int64_t i = 0; i < n; ++i) t.values.push_back(random.normal() * 0.3F);
    out[name] = std::move(t);
  };
  add("w_q", {c.q_heads * c.k_dim, hidden});
  add("w_k", {c.kv_heads * c.k_dim, hidden});
  add("w_v", {c.kv_heads * c.v_dim, hidden});
  add("w_o", {hidden, c.q_heads * c.v_dim});
  add("calibration", {tokens, hidden});
  if (biases) {
    add("b_q", {c.q_heads * c.k_dim});
    add("b_k", {c.kv_heads * c.k_dim});
    add("b_v", {c.kv_heads * c.v_dim});
  }
  return out;
}

double distance(const Matrix& a, const Matrix& b) {
  double most = 0.0, largest = 0.0;
  for (std::size_t i = 0; i < b.rows(); ++i)
    for (std::size_t j = 0; j < b.cols(); ++j) {
      most = std::max(most, std::abs(a(i, j) - b(i, j)));
      largest = std::max(largest, std::abs(b(i, j)));
    }
  return most / largest;
}

}  // namespace kvatlas::test
