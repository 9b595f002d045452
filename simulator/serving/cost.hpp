// Step times and cache blocks of one replica, from the step model: looked up and interpolated, so that a simulated step costs
// nanoseconds. Whatever is looked up twice is computed once.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "core/units.hpp"
#include "simulator/step_model.hpp"

namespace kvatlas::sim {

/// What a pass of one replica carries.
struct PassLoad {
  std::int64_t decodes = 0;        // sequences that decode
  double prompt_tokens = 0;        // their prompts, summed
  double generated_tokens = 0;     // and what they have generated
  std::int64_t prefill_tokens = 0; // prompt tokens processed in this pass
  double deviation = 0;            // of the decodes' lengths from their mean, tokens: the root of the mean square
  double prefill_kernels_s = 0;    // the method's kernels for those, see prompt_kernels_s
  std::int64_t finished_prompts = 0;
};

class ServingCost {
 public:
  /// `mean_output` and `mean_prompt` place the linear law of a sequence's blocks; `longest_prompt` and `most_sequences` size the workspace.
  ServingCost(Deployment deployment, Tokens mean_prompt, Tokens mean_output, Tokens longest_prompt, int most_sequences);

  const StepModel& model() const { return model_; }
  double pass_s(const PassLoad& load);
  /// Kernels that take a prompt from `from` processed tokens to `to`; the launches of a chunk's first prompt come on top in pass_s.
  double prompt_kernels_s(std::int64_t from, std::int64_t to);

  /// Blocks: the unit in which a replica's cache memory is handed out. A block holds a page of tokens as the method stores them.
  std::int64_t page() const { return page_; }
  std::int64_t pool_blocks() const { return pool_blocks_; }
  double block_bytes() const { return block_bytes_; }
  /// Blocks of a sequence with nothing but a prompt of this length.
  std::int64_t prompt_blocks(std::int64_t prompt);
  /// Whether a sequence takes a block for each page of generated tokens; otherwise it takes all it will ever need with its prompt.
  bool grows() const { return grows_; }
  std::int64_t whole_blocks(std::int64_t prompt, std::int64_t output);
  /// Bytes of a finished prompt's cache, as a disaggregated deployment moves them; of all GPUs of the replica.
  double prompt_bytes(std::int64_t prompt);

 private:
  double rows_s(std::int64_t rows);
  double heads_s(std::int64_t heads);
  double decode_kernels_s(std::int64_t decodes, double prompt, double generated);
  double decode_cell(std::int64_t decodes, int prompt_cell, int generated_cell);
  /// What unequal lengths add to the decode kernels, as a share of their time: by the discrete model of attention, on a coarse grid.
  double ragged_share(std::int64_t decodes, double length, double variation);
  double ragged_cell(int decodes_cell, int length_cell, int level);
  double prompt_cell_rate(int cell);
  double bytes(std::int64_t prompt, std::int64_t generated) const;

  StepModel model_;
  double emitted_, rows_per_sequence_, prompt_floor_s_ = 0;
  bool split_matters_ = false;  // the cost of a step depends on how much of a context came as the prompt
  std::int64_t page_, pool_blocks_ = 0, stages_;
  double block_bytes_ = 1;
  bool grows_ = true;
  std::vector<double> rows_, heads_, prompt_rates_;
  std::vector<std::vector<double>> decodes_;  // by batch, then by context
  std::unordered_map<std::uint64_t, double> split_decodes_;
  std::unordered_map<std::uint32_t, double> ragged_;
  std::unordered_map<std::int64_t, std::int64_t> prompt_blocks_;
  std::unordered_map<std::uint64_t, std::int64_t> whole_blocks_;
};

}  // namespace kvatlas::sim
