#include "simulator/serving/cost.hpp"

#include <algorithm>
#include <cmath>

#include "core/errors.hpp"
#include "simulator/serving/capacity.hpp"

namespace kvatlas::sim {

namespace {

constexpr std::int64_t kMemoRows = 1 << 16;
/// Cells of an octave: kernels are nearly linear between neighbours 1.09 apart.
constexpr int kPerOctave = 8, kOctaves = 30, kCells = kPerOctave * kOctaves;
static_assert(kCells <= 256, "a cell is a byte of a key");

/// Lengths at which kernels are computed: 2^octave (1 + i / 8).
double length_of(int cell) { return std::ldexp(1.0 + static_cast<double>(cell % kPerOctave) / kPerOctave, cell / kPerOctave); }

/// The last cell whose length is at most x, for x >= 1.
int cell_of(double x) {
  int exponent = 0;
  const double mantissa = std::frexp(x, &exponent);  // x = mantissa 2^exponent, mantissa in [0.5, 1)
  const int octave = exponent - 1;
  const int i = static_cast<int>((mantissa * 2.0 - 1.0) * kPerOctave);
  return std::clamp(octave * kPerOctave + i, 0, kCells - 2);
}

Tokens tokens_of(double x) { return Tokens(static_cast<std::int64_t>(std::max(1.0, std::floor(x + 0.5)))); }

}  // namespace

ServingCost::ServingCost(Deployment deployment, Tokens mean_prompt, Tokens mean_output, Tokens longest_prompt, int most_sequences)
    : model_(std::move(deployment)), emitted_(model_.emitted()), rows_per_sequence_(model_.rows_per_sequence()), page_(model_.engine().page.value),
      stages_(model_.deployment().pp) {
  rows_.assign(static_cast<std::size_t>(kMemoRows), -1.0);
  heads_.assign(4096, -1.0);
  prompt_rates_.assign(static_cast<std::size_t>(kCells), -1.0);
  prompt_floor_s_ = model_.prompt_kernels_s(Tokens(1));
  // Where the share of the prompt moves no figure, one table of contexts serves all.
  for (const std::int64_t context : {2048, 16384})
    for (const std::int64_t batch : {1, 16}) {
      const double whole = model_.decode_kernels_s(Tokens(context), Tokens(context), static_cast<int>(batch));
      const double part = model_.decode_kernels_s(Tokens(context / 4), Tokens(context), static_cast<int>(batch));
      split_matters_ = split_matters_ || std::abs(whole - part) > 1e-9 * whole;
    }

  const Deployment& d = model_.deployment();
  const std::int64_t pass = model_.whole_prompt() ? std::max(longest_prompt, d.chunk).value : d.chunk.value;
  const double room = cache_capacity(model_, {.batched_tokens = pass, .sequences = most_sequences}).cache - model_.memory(longest_prompt, longest_prompt, d.dp).prefill_extra;
  // A block is a page of tokens as they are stored: what a page of generated tokens adds to a sequence of typical length.
  const std::int64_t prompt = std::max<std::int64_t>(mean_prompt.value, 1);
  const std::int64_t far = ceil_div(std::max<std::int64_t>(mean_output.value, 16 * page_), page_);
  const double added = (bytes(prompt, far * page_) - bytes(prompt, 0)) / static_cast<double>(far);
  const double plain = model_.baseline_bytes(Tokens(prompt + far * page_)) - model_.baseline_bytes(Tokens(prompt));
  const double plain_page = plain / static_cast<double>(far) / static_cast<double>(stages_);
  grows_ = added > 0.02 * plain_page;
  block_bytes_ = std::max(1.0, grows_ ? added : plain_page > 0 ? plain_page : bytes(prompt, 0) / static_cast<double>(ceil_div(prompt, page_)));
  pool_blocks_ = room > 0 ? static_cast<std::int64_t>(std::floor(room / block_bytes_)) : 0;
}

double ServingCost::bytes(std::int64_t prompt, std::int64_t generated) const {
  return model_.memory(Tokens(prompt), Tokens(prompt + generated), model_.deployment().dp).cache;
}

double ServingCost::prompt_bytes(std::int64_t prompt) { return static_cast<double>(prompt_blocks(prompt)) * block_bytes_ * model_.deployment().tp * model_.deployment().pp; }

std::int64_t ServingCost::prompt_blocks(std::int64_t prompt) {
  const auto [found, fresh] = prompt_blocks_.try_emplace(ceil_div(prompt, page_), 0);
  if (fresh) found->second = static_cast<std::int64_t>(std::ceil(bytes(prompt, 0) / block_bytes_ * (1.0 - 1e-9)));
  return found->second;
}

std::int64_t ServingCost::whole_blocks(std::int64_t prompt, std::int64_t output) {
  if (grows_) {
    const std::int64_t slack = (page_ - prompt % page_) % page_;
    return prompt_blocks(prompt) + ceil_div(std::max<std::int64_t>(0, output - slack), page_);
  }
  const std::uint64_t key = static_cast<std::uint64_t>(ceil_div(prompt, page_)) << 32 | static_cast<std::uint64_t>(ceil_div(output, page_));
  const auto [found, fresh] = whole_blocks_.try_emplace(key, 0);
  if (fresh) found->second = std::max(prompt_blocks(prompt), static_cast<std::int64_t>(std::ceil(bytes(prompt, output) / block_bytes_ * (1.0 - 1e-9))));
  return found->second;
}

double ServingCost::rows_s(std::int64_t rows) {
  // The micro-batches of a pipeline share the rows; a pass is over when all have passed every stage.
  const std::int64_t n = std::max<std::int64_t>(1, ceil_div(rows, stages_));
  if (n >= kMemoRows) return model_.pass_s(static_cast<double>(n), 1, 1);
  double& seconds = rows_[static_cast<std::size_t>(n)];
  if (seconds < 0) seconds = model_.pass_s(static_cast<double>(n), 1, 1);
  return seconds;
}

double ServingCost::heads_s(std::int64_t heads) {
  const auto n = static_cast<std::size_t>(std::max<std::int64_t>(1, ceil_div(heads, stages_)));
  if (n >= heads_.size()) heads_.resize(n + 1, -1.0);
  if (heads_[n] < 0) heads_[n] = model_.pass_s(1, static_cast<double>(n), static_cast<double>(n)) - model_.pass_s(1, 1, 1);
  return heads_[n];
}

double ServingCost::decode_cell(std::int64_t decodes, int prompt_cell, int generated_cell) {
  const auto n = static_cast<std::size_t>(ceil_div(decodes, stages_));
  double* seconds = nullptr;
  if (split_matters_) {
    const std::uint64_t key = (static_cast<std::uint64_t>(n) << 16) | static_cast<std::uint64_t>(prompt_cell << 8 | generated_cell);
    seconds = &split_decodes_.try_emplace(key, -1.0).first->second;
  } else {
    if (n >= decodes_.size()) decodes_.resize(n + 1);
    if (decodes_[n].empty()) decodes_[n].assign(static_cast<std::size_t>(kCells), -1.0);
    seconds = &decodes_[n][static_cast<std::size_t>(prompt_cell)];
  }
  if (*seconds < 0) {
    const Tokens prompt = tokens_of(length_of(prompt_cell));
    const Tokens context = split_matters_ ? prompt + tokens_of(length_of(generated_cell)) : prompt;
    *seconds = model_.decode_kernels_s(prompt, context, static_cast<int>(n));
  }
  return *seconds;
}

double ServingCost::decode_kernels_s(std::int64_t decodes, double prompt, double generated) {
  if (!split_matters_) {
    const double x = std::max(1.0, prompt + generated);
    const int c = cell_of(x);
    const double low = length_of(c), share = std::min(1.0, (x - low) / (length_of(c + 1) - low));
    return decode_cell(decodes, c, 0) * (1.0 - share) + decode_cell(decodes, c + 1, 0) * share;
  }
  const double p = std::max(1.0, prompt), g = std::max(1.0, generated);
  const int cp = cell_of(p), cg = cell_of(g);
  const double sp = std::min(1.0, (p - length_of(cp)) / (length_of(cp + 1) - length_of(cp)));
  const double sg = std::min(1.0, (g - length_of(cg)) / (length_of(cg + 1) - length_of(cg)));
  const double near = decode_cell(decodes, cp, cg) * (1.0 - sg) + decode_cell(decodes, cp, cg + 1) * sg;
  if (sp == 0) return near;
  const double beyond = decode_cell(decodes, cp + 1, cg) * (1.0 - sg) + decode_cell(decodes, cp + 1, cg + 1) * sg;
  return near * (1.0 - sp) + beyond * sp;
}

namespace {

constexpr int kCoarse = kPerOctave / 2;  // cells of the grid above in one of this grid
constexpr int kLevels = 4;               // of the coefficient of variation, in one

}  // namespace

double ServingCost::ragged_cell(int decodes_cell, int length_cell, int level) {
  if (level == 0) return 0;
  const std::uint32_t key = static_cast<std::uint32_t>(decodes_cell) << 16 | static_cast<std::uint32_t>(length_cell) << 8 | static_cast<std::uint32_t>(level);
  const auto [found, fresh] = ragged_.try_emplace(key, 0.0);
  if (!fresh) return found->second;
  constexpr double kLonger = 1.25;
  const double length = length_of(length_cell * kCoarse);
  const int decodes = static_cast<int>(length_of(decodes_cell * kCoarse) + 0.5);
  const auto at = model_.decode_attention(tokens_of(length), decodes), longer = model_.decode_attention(tokens_of(length * kLonger), decodes);
  const double all = model_.decode_kernels_s(tokens_of(length), tokens_of(length), decodes);
  if (at.seconds <= 0 || all <= 0) return 0;
  // A cache with a budget varies less than the sequence does.
  const double follows = std::clamp((longer.entries / at.entries - 1) / (kLonger - 1), 0.0, 1.0);
  return found->second = at.seconds / all * (model_.ragged_penalty(at.caches, at.entries, follows * level / kLevels) - 1);
}

double ServingCost::ragged_share(std::int64_t decodes, double length, double variation) {
  if (decodes < 2) return 0;
  const double level = std::min(variation, 4.0) * kLevels;
  const int below = static_cast<int>(level), n = (cell_of(static_cast<double>(decodes)) + kCoarse / 2) / kCoarse, cell = (cell_of(std::max(1.0, length)) + kCoarse / 2) / kCoarse;
  const double share = level - below;
  return ragged_cell(n, cell, below) * (1 - share) + (share > 0 ? ragged_cell(n, cell, below + 1) * share : 0);
}

double ServingCost::prompt_cell_rate(int cell) {
  double& rate = prompt_rates_[static_cast<std::size_t>(cell)];
  if (rate < 0) {
    const Tokens n = tokens_of(length_of(cell));
    rate = std::max(0.0, model_.prompt_kernels_s(n) - prompt_floor_s_) / static_cast<double>(n.value);
  }
  return rate;
}

double ServingCost::prompt_kernels_s(std::int64_t from, std::int64_t to) {
  // Seconds per token are nearly linear in the length where attention is quadratic, so they are what is interpolated.
  const auto up_to = [&](std::int64_t n) {
    if (n <= 1) return 0.0;
    const auto x = static_cast<double>(n);
    const int c = cell_of(x);
    const double low = length_of(c), share = std::min(1.0, (x - low) / (length_of(c + 1) - low));
    return x * (prompt_cell_rate(c) * (1.0 - share) + prompt_cell_rate(c + 1) * share);
  };
  return std::max(0.0, up_to(to) - up_to(from)) / static_cast<double>(stages_);
}

double ServingCost::pass_s(const PassLoad& load) {
  double seconds = 0;
  const auto b = load.decodes;
  const auto rows = static_cast<std::int64_t>(static_cast<double>(b) * rows_per_sequence_ + 0.5);
  if (b > 0) {
    const double n = static_cast<double>(b), mean = (load.prompt_tokens + load.generated_tokens) / n;
    const double kernels = decode_kernels_s(b, load.prompt_tokens / n, load.generated_tokens / n) * (1 + ragged_share(ceil_div(b, stages_), mean, mean > 0 ? load.deviation / mean : 0));
    seconds = (kernels + rows_s(rows) + heads_s(rows) +
               model_.draft_s(static_cast<int>(ceil_div(b, stages_)))) / emitted_;
  }
  if (load.prefill_tokens > 0) {
    // Prompt rows ride with the decodes: weights are read once for both.
    seconds += prompt_floor_s_ + load.prefill_kernels_s + (b > 0 ? rows_s(rows + load.prefill_tokens) - rows_s(rows) : rows_s(load.prefill_tokens));
    seconds += b > 0 ? heads_s(rows + load.finished_prompts) - heads_s(rows) : heads_s(load.finished_prompts);
  }
  return seconds;
}

}  // namespace kvatlas::sim
