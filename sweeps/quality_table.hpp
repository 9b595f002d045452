// Measured quality of many recipes on one model, as a file that people read, that versions control and that a stopped run goes on
// with: comment lines say what all rows share, a row is a recipe at a context.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sweeps/quality.hpp"

namespace kvatlas::sweep {

inline constexpr std::array<std::string_view, 20> kQualityFigures{
    "n", "perplexity_full", "perplexity", "perplexity_low", "perplexity_high", "delta_perplexity", "delta_low", "delta_high", "delta_detectable", "kl_mean", "kl_low",
    "kl_high", "kl_detectable", "kl_p99", "kl_max", "top1_agreement", "top1_low", "top1_high", "top1_detectable", "attention_rel_error"};

struct QualityTableRow {
  std::int64_t context = 0;
  std::string recipe{};   // canonical, as it was asked for
  std::string ran{};      // the recipe that ran, where it is another: windowed layers stayed plain
  std::string grade{};    // M
  std::string verdict{};  // of Verdict, or baseline; empty where it failed
  std::array<std::optional<double>, kQualityFigures.size()> figures{};
  std::optional<std::int64_t> stored_bytes{}, dense_bytes{};
  std::string version{};  // of the code that measured it
  std::string failure{};  // the sentence with which the method refused; then there is no figure

  std::optional<double> figure(std::string_view name) const;
};

struct QualityTable {
  std::string model{};          // slug
  std::string quality_model{};  // name of the weights
  std::string weights_hash{}, text_hash{}, protocol{}, dtype{};
  std::int64_t scored = 0, windows = 1, chunk = 0, seed = 0;
  std::vector<QualityTableRow> rows{};

  const QualityTableRow* find(std::int64_t context, std::string_view recipe) const;
  /// Adds a row, or replaces the one of the same context and recipe; rows stay in the order of contexts, `full` first, then by recipe.
  void put(QualityTableRow row);
};

/// The name of the first setting in which two tables differ, so that their rows may not stand together; none when they may.
std::optional<std::string> differs_in(const QualityTable& a, const QualityTable& b);

/// Tables one after another, each with its comment lines. throws InvalidArgument that names file and line
std::vector<QualityTable> read_quality_tables(std::string_view text, std::string_view file);
std::string write_quality_table(const QualityTable& table);

/// What a store keeps of it.
std::vector<QualityRow> quality_rows(const QualityTable& table);

/// The tables that this program was built with; see models/evaluation/tables.
const std::vector<QualityTable>& shipped_quality_tables();

/// Quality figures that papers publish (grade P, reference/quality.csv), and those of the shipped tables.
const std::vector<QualityRow>& shipped_quality();

}  // namespace kvatlas::sweep
