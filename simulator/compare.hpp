// Published decode-attention timings beside our prediction and two plain rooflines: how good is the kernel model?
#pragma once

#include <istream>
#include <string>
#include <vector>

namespace kvatlas::sim {

/// Absolute percentage errors of one predictor over a set of rows, as fractions.
struct ErrorFigures {
  double median = 0, mean = 0, p90 = 0;
};

/// Rows of one GPU name as the file writes it, or of all ("*").
struct Comparison {
  std::string gpu;
  std::int64_t rows = 0;
  ErrorFigures ours, roofline, scaled;  // roofline: bytes / peak; scaled: bytes / (0.8 peak) + 3 us
  double bias = 0;                      // median of ours / measured - 1
  double coverage = 0;                  // share of rows inside our 80% interval
};

struct ComparisonReport {
  std::vector<Comparison> by_gpu;        // last row: all
  std::int64_t skipped = 0;              // rows that are not cold: l2x <= 2 or context < 1024
};

/// Reads a CSV with the columns gpu, heads, kv_heads, head_dim, window, batch, context, kv_dtype, measured_ms, l2x
/// (others are ignored, lines starting with # too) and compares its cold rows (l2x > 2, context >= 1024).
/// throws InvalidArgument naming line and field
ComparisonReport compare_decode_attention(std::istream& csv);

/// The report as a table for people.
std::string to_text(const ComparisonReport& report);

}  // namespace kvatlas::sim
