// Published runs of whole models beside ours: fixed batches from prompt to last token, prompts and decode steps alone, steady serving.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::sim {

/// One published figure beside ours. Nothing of the prediction is fitted to such runs.
struct EndToEndFigure {
  std::string kind;                  // "e2e_total", "e2e_prefill", "e2e_decode_step", "e2e_ttft", "e2e_tpot"
  std::string gpu, framework, model; // as the file writes them
  std::string weights;               // "bf16?" where the file marks them as a guess
  std::string text;                  // the run for people
  double measured_s = 0, predicted_s = 0, low_s = 0, high_s = 0;
  double roofline_s = 0;             // weights and cache over the peak bandwidth, prompts over the peak of the matrix units
};

/// Reads a table in the columns of e2e_static.csv (a fixed batch: e2e_ms, prefill_ms, decode_step_ms) or e2e_serving.csv (a fixed
/// concurrency: ttft_ms, tpot_ms). Rows of a model, an engine or a parallel layout without a description here are counted in
/// `left_out` under their reason. throws InvalidArgument naming line and field
std::vector<EndToEndFigure> read_end_to_end(std::string_view csv, std::string_view name, std::map<std::string, int>& left_out);

}  // namespace kvatlas::sim
