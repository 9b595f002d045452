#include "core/linalg/svd.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/errors.hpp"
#include "core/linalg/qr.hpp"

namespace kvatlas::linalg {

namespace {

constexpr int kMaxSweeps = 30;

/// Turns rows p and q of `work` until they are orthogonal, `turns` with them; false if they were already.
bool orthogonalise(Matrix& work, Matrix& turns, std::vector<double>& squares, std::size_t p, std::size_t q) {
  const double product = lane_dot(work.row(p), work.row(q));
  const double tolerance = 0x1p-52 * std::sqrt(static_cast<double>(work.cols()));
  if (std::abs(product) <= tolerance * std::sqrt(squares[p]) * std::sqrt(squares[q])) return false;
  const double zeta = (squares[q] - squares[p]) / (2.0 * product);
  const double root = std::abs(zeta) + std::sqrt(1.0 + zeta * zeta);
  const double tangent = zeta >= 0.0 ? 1.0 / root : -1.0 / root;
  const double cosine = 1.0 / std::sqrt(1.0 + tangent * tangent);
  rotate(work.row(p), work.row(q), cosine, cosine * tangent);
  rotate(turns.row(p), turns.row(q), cosine, cosine * tangent);
  squares[p] = lane_dot(work.row(p), work.row(p));
  squares[q] = lane_dot(work.row(q), work.row(q));
  return true;
}

/// Fills the columns listed in `missing` so that all columns are orthonormal: each time the unit vector that the present
/// columns cover least (ties: lowest), made orthogonal twice.
void complete(Matrix& columns, const std::vector<std::size_t>& missing) {
  std::vector<bool> present(columns.cols(), true);
  for (const std::size_t j : missing) present[j] = false;
  for (const std::size_t target : missing) {
    std::vector<double> covered(columns.rows(), 0.0);
    for (std::size_t i = 0; i < columns.rows(); ++i)
      for (std::size_t j = 0; j < columns.cols(); ++j)
        if (present[j]) covered[i] = fma(columns(i, j), columns(i, j), covered[i]);
    const auto unit = static_cast<std::size_t>(std::min_element(covered.begin(), covered.end()) - covered.begin());
    std::vector<double> x(columns.rows(), 0.0);
    x[unit] = 1.0;
    for (int pass = 0; pass < 2; ++pass)
      for (std::size_t j = 0; j < columns.cols(); ++j) {
        if (!present[j]) continue;
        double along = 0.0;
        for (std::size_t i = 0; i < x.size(); ++i) along = fma(columns(i, j), x[i], along);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = fma(-along, columns(i, j), x[i]);
      }
    const double norm = std::sqrt(lane_dot(x, x));
    for (std::size_t i = 0; i < x.size(); ++i) columns(i, target) = x[i] / norm;
    present[target] = true;
  }
}

void fix_signs(Svd& svd) {
  const std::vector<bool> flipped = make_largest_positive(svd.v);
  for (std::size_t j = 0; j < svd.sigma.size(); ++j)
    if (flipped[j])
      for (std::size_t i = 0; i < svd.u.rows(); ++i) svd.u(i, j) = -svd.u(i, j);
  Matrix u = svd.u;
  make_largest_positive(u);
  for (std::size_t j = 0; j < svd.sigma.size(); ++j)
    if (svd.sigma[j] == 0.0)
      for (std::size_t i = 0; i < u.rows(); ++i) svd.u(i, j) = u(i, j);
}

Svd tall_svd(const Matrix& a) {
  const std::size_t n = a.cols();
  const Reflections qr(a, true);
  Matrix work = qr.r();
  Matrix turns = Matrix::identity(n);  // turns * R = work throughout
  std::vector<double> squares(n);
  for (std::size_t i = 0; i < n; ++i) squares[i] = lane_dot(work.row(i), work.row(i));
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    bool turned = false;
    for (std::size_t p = 0; p < n; ++p)
      for (std::size_t q = p + 1; q < n; ++q) turned = orthogonalise(work, turns, squares, p, q) || turned;
    if (!turned) break;
  }
  std::vector<std::size_t> rank(n);
  std::iota(rank.begin(), rank.end(), std::size_t{0});
  std::stable_sort(rank.begin(), rank.end(), [&](std::size_t x, std::size_t y) { return squares[x] > squares[y]; });
  Svd out{{}, std::vector<double>(n), Matrix(n, n)};
  Matrix left(n, n);
  std::vector<std::size_t> missing;
  for (std::size_t j = 0; j < n; ++j) {
    const std::size_t from = rank[j];
    out.sigma[j] = std::sqrt(squares[from]);
    if (out.sigma[j] == 0.0) missing.push_back(j);
    for (std::size_t i = 0; i < n; ++i) {
      left(i, j) = turns(from, i);
      if (out.sigma[j] > 0.0) out.v(qr.order()[i], j) = work(from, i) / out.sigma[j];
    }
  }
  complete(out.v, missing);
  out.u = qr.q_times(left);
  return out;
}

}  // namespace

Svd jacobi_svd(const Matrix& a) {
  Svd out;
  if (a.rows() >= a.cols()) {
    out = tall_svd(a);
  } else {
    out = tall_svd(transpose(a));
    std::swap(out.u, out.v);
  }
  fix_signs(out);
  return out;
}

namespace {

Svd cut(const Svd& full, std::size_t rank) {
  return {first_columns(full.u, rank),
          {full.sigma.begin(), full.sigma.begin() + static_cast<std::ptrdiff_t>(rank)},
          first_columns(full.v, rank)};
}

}  // namespace

Svd truncated_svd(const Matrix& a, const SubspaceOptions& options) {
  const std::size_t side = std::min(a.rows(), a.cols());
  if (options.rank < 1 || options.rank > side)
    throw InvalidArgument(cat("rank is ", options.rank, ", must be between 1 and min(rows, cols) (", side, ")"));
  if (options.iterations < 0) throw InvalidArgument(cat("iterations is ", options.iterations, ", must not be negative"));
  require_finite(a, "matrix");
  const std::size_t block = options.rank + options.oversample;
  if (block >= side) return cut(jacobi_svd(a), options.rank);
  Matrix start(a.cols(), block);
  for (std::size_t i = 0; i < start.rows(); ++i)
    for (std::size_t j = 0; j < block; ++j) start(i, j) = random_normal(options.start, i * block + j);
  const Matrix transposed = transpose(a);
  Matrix basis = householder_qr(start).q;
  for (int pass = 0; pass < options.iterations; ++pass)
    basis = householder_qr(matmul(transposed, householder_qr(matmul(a, basis)).q)).q;
  Svd small = jacobi_svd(matmul(a, basis));
  small.v = matmul(basis, small.v);
  fix_signs(small);
  return cut(small, options.rank);
}

Matrix compose(const Svd& svd) {
  Matrix scaled = svd.u;
  for (std::size_t i = 0; i < scaled.rows(); ++i)
    for (std::size_t j = 0; j < scaled.cols(); ++j) scaled(i, j) *= svd.sigma[j];
  return matmul(scaled, transpose(svd.v));
}

}  // namespace kvatlas::linalg
