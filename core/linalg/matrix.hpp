// A small dense float64 matrix and the canonical products that the decompositions are built from.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/view.hpp"

namespace kvatlas::linalg {

/// Row-major, owning.
class Matrix {
 public:
  Matrix() = default;
  Matrix(std::size_t rows, std::size_t cols) : rows_(rows), cols_(cols), values_(rows * cols, 0.0) {}
  Matrix(std::size_t rows, std::size_t cols, std::vector<double> values);  // throws InvalidArgument on a wrong count

  static Matrix identity(std::size_t n);

  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  double& operator()(std::size_t i, std::size_t j) { return values_[i * cols_ + j]; }
  double operator()(std::size_t i, std::size_t j) const { return values_[i * cols_ + j]; }
  std::span<double> row(std::size_t i) { return {values_.data() + i * cols_, cols_}; }
  std::span<const double> row(std::size_t i) const { return {values_.data() + i * cols_, cols_}; }
  const std::vector<double>& values() const { return values_; }
  friend bool operator==(const Matrix&, const Matrix&) = default;

 private:
  std::size_t rows_ = 0, cols_ = 0;
  std::vector<double> values_;
};

/// a * b + c with one rounding.
inline double fma(double a, double b, double c) { return std::fma(a, b, c); }

/// The float32 rows as float64, exactly. throws InvalidArgument unless the view has rank 2 and is finite.
Matrix from_view(View<const float> rows);
/// Each entry rounded once to float32.
Array to_array(const Matrix& a);

Matrix transpose(const Matrix& a);
/// The first `count` columns.
Matrix first_columns(const Matrix& a, std::size_t count);

/// a b: each output is one accumulator that starts at 0 and runs over the inner index in ascending order with fma, so
/// tiling and threads cannot change a bit.
Matrix matmul(const Matrix& a, const Matrix& b);

/// x.y in 16 lanes: element i belongs to lane i mod 16, each lane runs in ascending i with fma, then lanes 8, 4, 2 and 1
/// apart are added.
double lane_dot(std::span<const double> x, std::span<const double> y);

/// x' = c x - s y, y' = s x + c y; the product with y is rounded, the other is fused.
void rotate(std::span<double> x, std::span<double> y, double c, double s);

/// Multiplies column j by -1 where its entry of largest magnitude (ties: lowest row) is negative; returns which.
std::vector<bool> make_largest_positive(Matrix& columns);

/// throws InvalidArgument if an entry is not finite or above 2^500 in magnitude, whose square would overflow a sum.
void require_finite(const Matrix& a, std::string_view name);

}  // namespace kvatlas::linalg
