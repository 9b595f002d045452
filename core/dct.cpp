#include "core/dct.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/arith64.hpp"
#include "core/errors.hpp"

namespace kvatlas {

namespace {

constexpr double kPi = 3.1415926535897932384626433832795;

/// sin(pi numerator / denominator) with the period and the quadrants taken off in integers, so that mirrored arguments
/// give mirrored bits and sin of a multiple of pi is 0.
double sin_of_fraction(std::int64_t numerator, std::int64_t denominator) {
  std::int64_t r = numerator % (2 * denominator);
  if (r < 0) r += 2 * denominator;
  const double sign = r >= denominator ? -1.0 : 1.0;
  if (r >= denominator) r -= denominator;
  r = std::min(r, denominator - r);  // pi r / denominator in [0, pi / 2]
  const double turn = static_cast<double>(r) / static_cast<double>(denominator);
  return sign * (4 * r <= denominator ? num::sin(kPi * turn) : num::cos(kPi * (0.5 - turn)));
}

/// cos(pi r / 2N) for r = 0 .. 4N - 1, one period.
std::vector<double> cosine_period(std::int64_t n) {
  std::vector<double> table(static_cast<std::size_t>(4 * n));
  for (std::int64_t r = 0; r < 4 * n; ++r) table[static_cast<std::size_t>(r)] = sin_of_fraction(r + n, 2 * n);
  return table;
}

double factor_of(std::size_t k, std::size_t n) { return std::sqrt((k == 0 ? 1.0 : 2.0) / static_cast<double>(n)); }

/// sin((2M - 1) x / 2) / sin(x / 2) at x = pi p / (2 M N): twice the sum of cos(k x) over 0 <= k < M, less 1.
double dirichlet(std::int64_t p, std::int64_t kept, std::int64_t tokens) {
  if (p == 0) return static_cast<double>(2 * kept - 1);
  return sin_of_fraction(p * (2 * kept - 1), 4 * kept * tokens) / sin_of_fraction(p, 4 * kept * tokens);
}

constexpr std::int64_t kTileRows = 4;
constexpr std::int64_t kTileChannels = 32;  // g++ 12 unrolls loops of 16 into scalars

void accumulate(float (&sum)[kTileChannels], float weight, const float* row) {
  for (std::int64_t c = 0; c < kTileChannels; ++c) sum[c] += weight * row[c];
}

/// Outputs [first_row, + 4) x [first_channel, + 32), all inside; `panel` holds these channels of all tokens. A tile only
/// shares loads between its outputs. One array a row, so that g++ 12 keeps the sums in registers.
void apply_tile(View<const float> matrix, const std::vector<float>& panel, View<float> out, std::int64_t first_row,
                std::int64_t first_channel) {
  float sum0[kTileChannels] = {}, sum1[kTileChannels] = {}, sum2[kTileChannels] = {}, sum3[kTileChannels] = {};
  const float* const w0 = &matrix(first_row, 0);
  const float* const w1 = &matrix(first_row + 1, 0);
  const float* const w2 = &matrix(first_row + 2, 0);
  const float* const w3 = &matrix(first_row + 3, 0);
  const float* row = panel.data();
  for (std::int64_t t = 0; t < matrix.dim(1); ++t, row += kTileChannels) {
    accumulate(sum0, w0[t], row);
    accumulate(sum1, w1[t], row);
    accumulate(sum2, w2[t], row);
    accumulate(sum3, w3[t], row);
  }
  std::copy_n(sum0, kTileChannels, &out(first_row, first_channel));
  std::copy_n(sum1, kTileChannels, &out(first_row + 1, first_channel));
  std::copy_n(sum2, kTileChannels, &out(first_row + 2, first_channel));
  std::copy_n(sum3, kTileChannels, &out(first_row + 3, first_channel));
}

/// The definition, for the outputs that fill no tile.
float dot(std::span<const float> weights, View<const float> rows, std::int64_t channel) {
  float sum = 0.0F;
  for (std::int64_t t = 0; t < rows.dim(0); ++t) sum += weights[static_cast<std::size_t>(t)] * rows(t, channel);
  return sum;
}

}  // namespace

std::vector<double> dct2(std::span<const double> x) {
  const std::size_t n = x.size();
  const std::vector<double> cosine = cosine_period(static_cast<std::int64_t>(n));
  std::vector<double> out(n);
  for (std::size_t k = 0; k < n; ++k) {
    double sum = 0.0;
    for (std::size_t t = 0; t < n; ++t) sum += x[t] * cosine[(2 * t + 1) * k % (4 * n)];
    out[k] = factor_of(k, n) * sum;
  }
  return out;
}

std::vector<double> dct3(std::span<const double> coefficients) {
  const std::size_t n = coefficients.size();
  const std::vector<double> cosine = cosine_period(static_cast<std::int64_t>(n));
  std::vector<double> out(n);
  for (std::size_t t = 0; t < n; ++t) {
    double sum = 0.0;
    for (std::size_t k = 0; k < n; ++k) sum += factor_of(k, n) * coefficients[k] * cosine[(2 * t + 1) * k % (4 * n)];
    out[t] = sum;
  }
  return out;
}

LowPass::LowPass(Tokens tokens, Tokens kept) {
  constexpr std::int64_t kMaxTokens = 1 << 20;  // 8 kept^2 tokens, the largest integer below, stays inside 63 bits
  if (tokens.value < 1 || tokens.value > kMaxTokens)
    throw InvalidArgument(cat("tokens is ", tokens.value, ", must be between 1 and ", kMaxTokens));
  if (kept.value < 1 || kept > tokens)
    throw InvalidArgument(cat("kept is ", kept.value, ", must be between 1 and tokens (", tokens.value, ")"));
  const std::int64_t n = tokens.value;
  const std::int64_t m = kept.value;
  matrix_ = Array({m, n});
  // The sum over k of products of two cosines in closed form, by cos a cos b = (cos(a + b) + cos(a - b)) / 2.
  const View<float> a = matrix_.view();
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t t = 0; t < n; ++t) {
      const std::int64_t here = (2 * i + 1) * n;
      const std::int64_t there = (2 * t + 1) * m;
      a(i, t) = static_cast<float>((dirichlet(here + there, m, n) + dirichlet(here - there, m, n)) /
                                   static_cast<double>(2 * n));
    }
}

void LowPass::apply(View<const float> rows, View<float> out) const {
  if (rows.rank() != 2 || rows.dim(0) != tokens().value)
    throw InvalidArgument(cat("rows has ", rows.rank() == 2 ? rows.dim(0) : 0, " tokens, must be [", tokens().value,
                              ", channels]"));
  if (out.rank() != 2 || out.dim(0) != kept().value || out.dim(1) != rows.dim(1))
    throw InvalidArgument(cat("out must be [", kept().value, ", ", rows.dim(1), "]"));
  const std::int64_t whole_rows = out.dim(0) / kTileRows * kTileRows;
  const std::int64_t whole_channels = out.dim(1) / kTileChannels * kTileChannels;
  std::vector<float> panel(static_cast<std::size_t>(rows.dim(0) * kTileChannels));
  for (std::int64_t c = 0; c < whole_channels; c += kTileChannels) {
    for (std::int64_t t = 0; t < rows.dim(0); ++t)
      std::copy_n(&rows(t, c), kTileChannels, panel.begin() + static_cast<std::ptrdiff_t>(t * kTileChannels));
    for (std::int64_t m = 0; m < whole_rows; m += kTileRows) apply_tile(matrix(), panel, out, m, c);
  }
  for (std::int64_t m = 0; m < out.dim(0); ++m)
    for (std::int64_t c = m < whole_rows ? whole_channels : 0; c < out.dim(1); ++c) out(m, c) = dot(matrix().row(m), rows, c);
}

}  // namespace kvatlas
