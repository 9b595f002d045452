#include "reference/architecture/transmla/steps.hpp"

#include <algorithm>
#include <cmath>

#include "core/errors.hpp"
#include "core/linalg/symmetric_eigen.hpp"

namespace kvatlas::to_latent {

namespace {

constexpr double kDamping = 0.01;  // of the mean of the diagonal, as in the official code

/// Channel of the real (imaginary) part of frequency `pair` in kv head `head`.
std::size_t channel(const Widths& w, std::size_t head, std::size_t pair, bool imaginary) {
  const std::size_t in_head = w.layout == RopeLayout::interleaved ? 2 * pair + (imaginary ? 1 : 0)
                                                                   : pair + (imaginary ? w.k_dim / 2 : 0);
  return head * w.k_dim + in_head;
}

void scale_rows(Matrix& a, std::size_t first, std::size_t count, double factor) {
  for (std::size_t i = first; i < first + count; ++i)
    for (double& x : a.row(i)) x *= factor;
}

/// Mean over columns of the root of the sum of squares, squares in ascending row with fma, columns in ascending order.
double mean_column_norm(const Matrix& a) {
  double total = 0.0;
  for (std::size_t c = 0; c < a.cols(); ++c) {
    double squares = 0.0;
    for (std::size_t r = 0; r < a.rows(); ++r) squares = linalg::fma(a(r, c), a(r, c), squares);
    total += std::sqrt(squares);
  }
  return a.cols() == 0 ? 0.0 : total / static_cast<double>(a.cols());
}

}  // namespace

Matrix rows_of(const Matrix& a, std::size_t first, std::size_t count) {
  Matrix out(count, a.cols());
  for (std::size_t i = 0; i < count; ++i) std::ranges::copy(a.row(first + i), out.row(i).begin());
  return out;
}

Matrix columns_of(const Matrix& a, std::size_t first, std::size_t count) {
  Matrix out(a.rows(), count);
  for (std::size_t i = 0; i < a.rows(); ++i) std::ranges::copy(a.row(i).subspan(first, count), out.row(i).begin());
  return out;
}

Matrix principal_axes(const Matrix& samples) {
  Matrix gram = linalg::matmul(linalg::transpose(samples), samples);
  double mean = 0.0;
  for (std::size_t i = 0; i < gram.rows(); ++i) mean += gram(i, i);
  mean /= static_cast<double>(std::max<std::size_t>(1, gram.rows()));
  for (std::size_t i = 0; i < gram.rows(); ++i) gram(i, i) += kDamping * mean;
  return linalg::symmetric_eigen(gram).vectors;
}

Matrix rope_rotation(const Widths& w, const Matrix& keys) {
  const std::size_t fold = w.freqfold, groups = w.k_dim / 2 / fold, width = w.kv_heads * fold;
  const std::size_t per_head = fold / w.collapse();  // components of a group that one stretch of rope_dim channels takes
  Matrix rotation(w.keys(), w.keys());
  for (std::size_t g = 0; g < groups; ++g) {
    // Real and imaginary parts are samples of the same channels: one basis serves both, so it commutes with the rotation.
    Matrix samples(2 * keys.rows(), width);
    for (std::size_t t = 0; t < keys.rows(); ++t)
      for (std::size_t h = 0; h < w.kv_heads; ++h)
        for (std::size_t m = 0; m < fold; ++m) {
          samples(t, h * fold + m) = keys(t, channel(w, h, g * fold + m, false));
          samples(keys.rows() + t, h * fold + m) = keys(t, channel(w, h, g * fold + m, true));
        }
    const Matrix basis = principal_axes(samples);
    for (std::size_t c = 0; c < width; ++c) {
      const std::size_t to = c / per_head * w.rope_dim + 2 * (g * per_head + c % per_head);
      for (std::size_t h = 0; h < w.kv_heads; ++h)
        for (std::size_t m = 0; m < fold; ++m)
          for (const bool imaginary : {false, true})
            rotation(to + (imaginary ? 1 : 0), channel(w, h, g * fold + m, imaginary)) = basis(h * fold + m, c);
    }
  }
  return rotation;
}

RotatedKeys rotate_keys(const Widths& w, const Matrix& rotation, const Matrix& w_k) {
  RotatedKeys out{linalg::matmul(rotation, w_k), Matrix(w.q_heads * w.k_dim, w.keys())};
  for (std::size_t q = 0; q < w.q_heads; ++q)
    for (std::size_t c = 0; c < w.k_dim; ++c)
      for (std::size_t to = 0; to < w.keys(); ++to)
        out.up(q * w.k_dim + c, to) = rotation(to, q / w.q_per_kv() * w.k_dim + c);
  return out;
}

Matrix value_up(const Widths& w) {
  Matrix up(w.q_heads * w.v_dim, w.values());
  for (std::size_t q = 0; q < w.q_heads; ++q)
    for (std::size_t c = 0; c < w.v_dim; ++c) up(q * w.v_dim + c, q / w.q_per_kv() * w.v_dim + c) = 1.0;
  return up;
}

double balance(const Widths& w, const Matrix& rotated_keys, const Matrix& values, double balance_ratio) {
  if (w.keys() <= w.rope_dim || w.values() <= w.rope_dim) return 1.0;
  const double keys = mean_column_norm(columns_of(rotated_keys, w.rope_dim, w.keys() - w.rope_dim));
  // The official code leaves out the first rope_dim value columns too.
  const double others = mean_column_norm(columns_of(values, w.rope_dim, w.values() - w.rope_dim)) * balance_ratio;
  return keys > 0 && others > 0 ? keys / others : 1.0;
}

double latent_score_scale(const Widths& w) { return 1.0 / std::sqrt(static_cast<double>(w.k_dim + w.rope_dim)); }

Latent latent_weights(const Widths& w, const LatentInputs& in) {
  const std::size_t plain = w.keys() - w.rope_dim, inputs = in.w_q.cols();
  KV_ASSERT(in.axes.rows() == plain + w.values() && in.rank <= in.axes.cols(), "axes of the joint space");
  const Matrix axes = linalg::first_columns(in.axes, in.rank);

  // Step 3 and 4, down: the plain keys and the values side by side, seen along the principal axes.
  Matrix joint(plain + w.values(), inputs);
  for (std::size_t i = 0; i < plain; ++i) std::ranges::copy(in.keys.project.row(w.rope_dim + i), joint.row(i).begin());
  scale_rows(joint, 0, plain, 1.0 / in.ratio);
  for (std::size_t i = 0; i < w.values(); ++i) std::ranges::copy(in.w_v.row(i), joint.row(plain + i).begin());
  const Matrix latent = linalg::matmul(linalg::transpose(axes), joint);

  Latent out{Matrix(w.q_heads * (w.k_dim + w.rope_dim), inputs), Matrix(in.rank + w.rope_dim, inputs),
             Matrix(w.q_heads * (w.k_dim + w.v_dim), in.rank)};
  for (std::size_t i = 0; i < in.rank; ++i) std::ranges::copy(latent.row(i), out.kv_a.row(i).begin());
  for (std::size_t i = 0; i < w.rope_dim; ++i) std::ranges::copy(in.keys.project.row(i), out.kv_a.row(in.rank + i).begin());

  // Step 4, up.
  Matrix k_up = linalg::matmul(columns_of(in.keys.up, w.rope_dim, plain), rows_of(axes, 0, plain));
  scale_rows(k_up, 0, k_up.rows(), in.ratio);
  const Matrix v_up = linalg::matmul(value_up(w), rows_of(axes, plain, w.values()));

  // Step 5. The converted layer divides by sqrt(k_dim + rope_dim); the queries make up for it.
  const double compensation = in.score_scale / latent_score_scale(w);
  const Matrix rope_up = columns_of(in.keys.up, 0, w.rope_dim);
  for (std::size_t h = 0; h < w.q_heads; ++h) {
    for (std::size_t i = 0; i < w.k_dim; ++i) std::ranges::copy(k_up.row(h * w.k_dim + i), out.kv_b.row(h * (w.k_dim + w.v_dim) + i).begin());
    for (std::size_t i = 0; i < w.v_dim; ++i)
      std::ranges::copy(v_up.row(h * w.v_dim + i), out.kv_b.row(h * (w.k_dim + w.v_dim) + w.k_dim + i).begin());
    const Matrix head = rows_of(in.w_q, h * w.k_dim, w.k_dim);
    const Matrix rope = linalg::matmul(linalg::transpose(rows_of(rope_up, h * w.k_dim, w.k_dim)), head);
    const std::size_t at = h * (w.k_dim + w.rope_dim);
    for (std::size_t i = 0; i < w.k_dim; ++i) std::ranges::copy(head.row(i), out.q.row(at + i).begin());
    for (std::size_t i = 0; i < w.rope_dim; ++i) std::ranges::copy(rope.row(i), out.q.row(at + w.k_dim + i).begin());
  }
  scale_rows(out.q, 0, out.q.rows(), compensation);
  return out;
}

}  // namespace kvatlas::to_latent
