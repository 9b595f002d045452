// Setups of published figures as a machine reads them: simulator/claims/setups.csv, joined with reference/claims.csv.
//
// A row names its claim by method, metric, published, context and batch as the table of claims writes them. `change` is empty
// for the setup as the source states it, else the one thing that an alternative reads otherwise. `spec` is a list of key=value
// separated by spaces; an alternative's keys overwrite those of the stated row. `note` says where figures beside the claim's
// own row come from, quotes the source of an alternative, or is the reason why a figure cannot be computed (quantity=none).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reference/claims.hpp"

namespace kvatlas::sim {

/// What is computed of one deployment.
enum class ClaimQuantity : std::uint8_t {
  none,                 // kvatlas computes no such figure
  step_s,               // one decode step, all layers, in the middle of the output
  layer_attention_s,    // kernels of one layer's attention in a decode step: selection, attention, merge
  prefill_s,            // one prompt
  prefill_attention_s,  // attention of one prompt, selection of blocks included, all layers
  ttft_s,               // prompt and first step
  tokens_per_s,         // output tokens of the batch over prompts and steps
  decode_tokens_per_s,  // output tokens of the batch over steps alone
  max_batch,            // sequences that fit, at their full length
  max_context,          // longest prompt that fits
  peak_bytes,           // of one GPU: weights, workspace, cache, what a prompt holds before it is compressed
  cache_bytes,          // steady cache of the batch
  bits_per_value,       // stored bits over values of the uncompressed cache
  bits_per_token_head,  // stored bits of one token in one kv head of one layer, keys and values together
  cache_tokens,         // the most that the cache ever holds, in tokens of the plain cache
  step_read_bytes,      // cache bytes that a decode step reads
};
const char* name_of(ClaimQuantity quantity);
/// A sum of stored bytes that the paper's own formula states as well: agreement confirms the formula, not a measurement.
bool is_byte_formula(ClaimQuantity quantity);
bool needs_gpu(ClaimQuantity quantity);

/// How ours and the baseline's quantity make the claimed figure.
enum class Compare : std::uint8_t { value, base_over_ours, ours_over_base, saving };
const char* name_of(Compare compare);

/// One deployment and what is asked of it.
struct ClaimSide {
  ClaimQuantity quantity = ClaimQuantity::none;
  std::string recipe = "full";
  std::string model, gpu;
  std::string weights = "bf16";
  std::string engine;              // empty: the default profile
  bool released = false;           // the released code's plan
  std::int64_t prompt = 0, output = 0;
  std::optional<int> batch = 1;    // empty: as many as fit
  std::int64_t shared = 0;         // leading prompt tokens that all sequences share
  int tp = 1;
  double utilization = 0.9;        // share of the GPU's memory that may be used
  bool metadata = true;            // false: codes and rows alone count (bytes only)
  std::string component;           // bytes only: this component of the ledger alone; empty: all
  std::int64_t chunk = 8192;       // tokens of a prefill chunk
};

struct ClaimSetup {
  ClaimSide ours, base;
  Compare compare = Compare::value;
  std::string assumed;             // what the source does not say and kvatlas chose: "gpu,batch"
};

struct SetupRow {
  int line = 0;
  std::string method, metric, published, context, batch;  // of the claim
  std::string change;                                     // empty, or one of allowed_changes()
  std::string spec, note;
  bool belongs_to(const Claim& claim) const;
};

/// One of the readings that may explain a figure, and the keys that it may overwrite.
struct AllowedChange {
  std::string_view name;
  std::vector<std::string_view> keys;
};
std::span<const AllowedChange> allowed_changes();

/// throws InvalidArgument that names the line: broken table, unknown change, an alternative without its quotation or stated row
std::vector<SetupRow> parse_setups(std::string_view csv);

/// The committed table, embedded at build time.
std::span<const SetupRow> all_setups();

using SetupKeys = std::map<std::string, std::string, std::less<>>;
/// The keys of a spec; throws InvalidArgument for a word without "=" or a repeated key.
SetupKeys parse_spec(std::string_view spec);
/// throws InvalidArgument: unknown key, value out of range, unknown model, GPU, recipe, engine or weight format
ClaimSetup make_setup(const SetupKeys& keys);

}  // namespace kvatlas::sim
