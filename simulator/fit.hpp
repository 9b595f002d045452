// Calibration: robust least squares with bounds over measured rows, and folds that leave out what a fit must not have seen.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "simulator/measurements.hpp"

namespace kvatlas::sim {

enum class LeaveOut : std::uint8_t { shapes, lengths, gpu };
const char* name_of(LeaveOut leave_out);

struct Prediction {
  double seconds = 0;
  Evidence evidence = Evidence::fitted;  // fitted: GPU and kernel were; extrapolated: another kernel stands in; other_gpu: no constants of this GPU
  std::string profile;
};
Prediction predict(const Calibration& calibration, const Measurement& row);
/// The 80% interval of a prediction as factors.
std::pair<double, double> interval_factors(const Calibration& calibration, KernelFamily family, Evidence evidence);

/// Absolute percentage errors, as fractions; p90 is nearest-rank.
struct ErrorFigures {
  double median = 0, mean = 0, p90 = 0;
  std::int64_t rows = 0;
};
ErrorFigures error_figures(std::vector<double> absolute_errors);

/// Fits every GPU, profile and rate that the rows reach, starting from `start`. GPUs and kernels that `start` lacks are added
/// (a kernel as a profile named framework:kernel); what no row reaches stays. Intervals are left alone.
Calibration fit(const Calibration& start, const std::vector<Measurement>& rows);

struct Fold {
  std::string left_out;
  ErrorFigures errors;
};
struct CrossValidation {
  std::vector<Fold> folds;
  std::vector<double> predicted;     // by row, each from a fit that has not seen its shape, length or GPU
};
CrossValidation cross_validate(const Calibration& start, const std::vector<Measurement>& rows, LeaveOut leave_out);

/// 80% intervals from left-out residuals: left-out shapes give `fitted`, lengths `extrapolated`, GPUs `other_gpu`;
/// decode attention counts its cold rows.
std::vector<FittedInterval> intervals_of(const Calibration& start, const std::vector<Measurement>& rows);

}  // namespace kvatlas::sim
