// Quality figures in a store: what evaluations write and recommendations look up.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

namespace kvatlas::sweep {

/// One figure of one recipe on one model.
struct QualityRow {
  std::string model;   // slug of the model that the row speaks for
  std::string recipe;  // canonical
  std::string quality_model;  // name of the weights that were run
  std::string metric;         // "perplexity", "kl_mean", "passkey:after"
  double value = 0;
  std::optional<double> retained;  // share of the plain cache's quality, at most 1; none for metrics without such a reading
  std::int64_t context = 0;
  std::string protocol;
  std::int64_t n = 0;
  std::optional<double> ci95_low, ci95_high;
  std::string grade;   // one of M, C, P, F, X
  std::string source;  // the command, the text
  // The setting: a figure of another one stands beside this, it does not replace it. Empty and 0: not known, or of no meaning.
  std::string dtype{};         // of the uncompressed cache
  std::int64_t seed = 0;
  std::string text_hash{};
  std::int64_t scored = 0, windows = 0, chunk = 0;
  std::int64_t trials = 0;      // cases of a task; 0: the figure is not of a task
  std::string trained_hash{};   // of the file of trained parts
};

/// A perplexity of fewer scored tokens in a window behind a compressed prompt is no evidence of what a method retains.
inline constexpr std::int64_t kLeastScored = 256;  // design of protocol A
inline bool enough_scored(std::int64_t n, std::int64_t windows) { return n >= kLeastScored * (windows > 1 ? windows : 1); }

/// Adds rows; a figure that is there already (same model, recipe, weights, metric, context, protocol and setting) is replaced.
/// throws IoError as Store does
void store_quality(const std::filesystem::path& path, std::span<const QualityRow> rows);

}  // namespace kvatlas::sweep
