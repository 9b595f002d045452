#include "core/linalg/matrix.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "core/errors.hpp"

namespace kvatlas::linalg {

Matrix::Matrix(std::size_t rows, std::size_t cols, std::vector<double> values)
    : rows_(rows), cols_(cols), values_(std::move(values)) {
  if (values_.size() != rows * cols)
    throw InvalidArgument(cat("values has ", values_.size(), " entries, must have rows * cols (", rows * cols, ")"));
}

Matrix Matrix::identity(std::size_t n) {
  Matrix out(n, n);
  for (std::size_t i = 0; i < n; ++i) out(i, i) = 1.0;
  return out;
}

void require_finite(const Matrix& a, std::string_view name) {
  for (std::size_t i = 0; i < a.rows(); ++i)
    for (std::size_t j = 0; j < a.cols(); ++j)
      if (!(std::abs(a(i, j)) <= 0x1p500))
        throw InvalidArgument(cat(name, " entry (", i, ", ", j, ") is ", a(i, j), ", must be finite and at most 2^500"));
}

Matrix from_view(View<const float> rows) {
  if (rows.rank() != 2) throw InvalidArgument(cat("view has rank ", rows.rank(), ", must be 2"));
  Matrix out(static_cast<std::size_t>(rows.dim(0)), static_cast<std::size_t>(rows.dim(1)));
  for (std::size_t i = 0; i < out.rows(); ++i) {
    const std::span<const float> row = rows.row(static_cast<std::int64_t>(i));
    std::copy(row.begin(), row.end(), out.row(i).begin());
  }
  require_finite(out, "view");
  return out;
}

Array to_array(const Matrix& a) {
  Array out({static_cast<std::int64_t>(a.rows()), static_cast<std::int64_t>(a.cols())});
  std::transform(a.values().begin(), a.values().end(), out.values().begin(),
                 [](double x) { return static_cast<float>(x); });
  return out;
}

Matrix transpose(const Matrix& a) {
  constexpr std::size_t kBlock = 16;  // both sides of the copy stay in cache
  Matrix out(a.cols(), a.rows());
  for (std::size_t i0 = 0; i0 < a.rows(); i0 += kBlock)
    for (std::size_t j0 = 0; j0 < a.cols(); j0 += kBlock)
      for (std::size_t i = i0; i < std::min(i0 + kBlock, a.rows()); ++i)
        for (std::size_t j = j0; j < std::min(j0 + kBlock, a.cols()); ++j) out(j, i) = a(i, j);
  return out;
}

Matrix first_columns(const Matrix& a, std::size_t count) {
  KV_ASSERT(count <= a.cols(), "columns that the matrix has");
  Matrix out(a.rows(), count);
  for (std::size_t i = 0; i < a.rows(); ++i) std::copy_n(a.row(i).begin(), count, out.row(i).begin());
  return out;
}

namespace {

constexpr std::size_t kTileRows = 4;
constexpr std::size_t kTileCols = 8;

void accumulate(double (&sum)[kTileCols], double factor, const double* row) {
  for (std::size_t j = 0; j < kTileCols; ++j) sum[j] = fma(factor, row[j], sum[j]);
}

/// sum = rows of `a` (at distance `stride`) times `panel` [inner, kTileCols]. One array a row: as one array of two axes
/// g++ 12 keeps the accumulators in memory, at a tenth of the speed.
void multiply_tile(const double* a, std::size_t stride, const double* panel, std::size_t inner,
                   double (&sum)[kTileRows][kTileCols]) {
  double sum0[kTileCols] = {}, sum1[kTileCols] = {}, sum2[kTileCols] = {}, sum3[kTileCols] = {};
  for (std::size_t k = 0; k < inner; ++k) {
    const double* row = panel + k * kTileCols;
    accumulate(sum0, a[k], row);
    accumulate(sum1, a[stride + k], row);
    accumulate(sum2, a[2 * stride + k], row);
    accumulate(sum3, a[3 * stride + k], row);
  }
  std::copy_n(sum0, kTileCols, sum[0]);
  std::copy_n(sum1, kTileCols, sum[1]);
  std::copy_n(sum2, kTileCols, sum[2]);
  std::copy_n(sum3, kTileCols, sum[3]);
}

}  // namespace

Matrix matmul(const Matrix& a, const Matrix& b) {
  if (a.cols() != b.rows())
    throw InvalidArgument(cat("b has ", b.rows(), " rows, must have as many as a has columns (", a.cols(), ")"));
  const std::size_t inner = a.cols();
  Matrix out(a.rows(), b.cols());
  std::vector<double> panel(inner * kTileCols);
  std::vector<double> last_rows(inner * kTileRows, 0.0);  // the rows of a that do not fill a tile, padded by zeros
  const std::size_t whole = a.rows() / kTileRows * kTileRows;
  std::copy(a.values().begin() + static_cast<std::ptrdiff_t>(whole * inner), a.values().end(), last_rows.begin());
  for (std::size_t j0 = 0; j0 < b.cols(); j0 += kTileCols) {
    const std::size_t width = std::min(kTileCols, b.cols() - j0);
    std::fill(panel.begin(), panel.end(), 0.0);
    for (std::size_t k = 0; k < inner; ++k) std::copy_n(&b.values()[k * b.cols() + j0], width, &panel[k * kTileCols]);
    for (std::size_t i0 = 0; i0 < a.rows(); i0 += kTileRows) {
      const double* rows = i0 < whole ? a.values().data() + i0 * inner : last_rows.data();
      double sum[kTileRows][kTileCols];
      multiply_tile(rows, inner, panel.data(), inner, sum);
      for (std::size_t i = 0; i < std::min(kTileRows, a.rows() - i0); ++i)
        std::copy_n(sum[i], width, out.row(i0 + i).begin() + static_cast<std::ptrdiff_t>(j0));
    }
  }
  return out;
}

double lane_dot(std::span<const double> x, std::span<const double> y) {
  KV_ASSERT(x.size() == y.size(), "vectors of one length");
  constexpr std::size_t kLanes = 16;
  std::array<double, kLanes> lane{};
  std::size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes)
    for (std::size_t l = 0; l < kLanes; ++l) lane[l] = fma(x[i + l], y[i + l], lane[l]);
  for (std::size_t l = 0; i + l < x.size(); ++l) lane[l] = fma(x[i + l], y[i + l], lane[l]);
  for (std::size_t apart = kLanes / 2; apart > 0; apart /= 2)
    for (std::size_t l = 0; l < apart; ++l) lane[l] += lane[l + apart];
  return lane[0];
}

void rotate(std::span<double> x, std::span<double> y, double c, double s) {
  KV_ASSERT(x.size() == y.size(), "vectors of one length");
  double* px = x.data();
  double* py = y.data();
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double xi = px[i];
    const double yi = py[i];
    px[i] = fma(c, xi, -(s * yi));
    py[i] = fma(s, xi, c * yi);
  }
}

std::vector<bool> make_largest_positive(Matrix& columns) {
  std::vector<bool> flipped(columns.cols(), false);
  for (std::size_t j = 0; j < columns.cols(); ++j) {
    double largest = 0.0;
    for (std::size_t i = 0; i < columns.rows(); ++i)
      if (std::abs(columns(i, j)) > std::abs(largest)) largest = columns(i, j);
    if (largest >= 0.0) continue;
    flipped[j] = true;
    for (std::size_t i = 0; i < columns.rows(); ++i) columns(i, j) = -columns(i, j);
  }
  return flipped;
}

}  // namespace kvatlas::linalg
