// Published kernel timings as work: one row of a CSV file in the documented columns becomes the input of a closed form.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "simulator/closed_form.hpp"

namespace kvatlas::sim {

enum class Subset : std::uint8_t { cold, overhead, warm };
const char* name_of(Subset subset);
/// The kind of measurement that a family of kernels is: the name of its file and of its rows in reports and stores.
const char* kind_of(KernelFamily family);

struct Measurement {
  KernelFamily family = KernelFamily::decode;
  std::string gpu_text;              // as the file writes it
  const Gpu* gpu = nullptr;
  std::string framework, kernel;     // framework without its version
  std::string shape;                 // what a fold that leaves out shapes leaves out together
  double length = 0;                 // context, seq_len or m: what a fold over lengths leaves out
  int bits = 16;                     // of a stored value
  int group = 1;
  double batch = 1;
  double l2_fill = kCold;            // data over L2; a repeated call may find it there
  double seconds = 0;
  double bytes = 0;                  // that a roofline counts
  double bytes_per_s = 1;            // at which it does: the memory's peak or the link's
  double flops = 0;                  // bf16 flop of the same work, for a roofline
  double speedup = 1;                // peak of the number format over bf16's
  Subset subset = Subset::cold;
  std::variant<DecodeWork, PrefillWork, MatrixWork, CollectiveWork> work;
  std::string text;                  // the shape for people
};

/// Reads one file. The kind is told by its columns: gemm_dtype (matrix products), seq_len (prompt attention),
/// message_elems_or_bytes (collectives), latent_dim (decode attention over latent rows), else decode attention.
/// throws InvalidArgument naming line and field, also for a file without rows
std::vector<Measurement> read_measurements(std::string_view csv, std::string_view name);

/// Files, or decode_attention.csv, prefill_attention.csv, gemm.csv, comm.csv and mla_decode.csv of a folder; other files of the folder and figures of other
/// kinds (whole models, e2e_*.csv; compressed_kv_reported, skewed_decode, mixed_batch_attention), which no fit of kernels may see, are named in `skipped`. Nothing given: the shipped samples.
std::vector<Measurement> load_measurements(const std::vector<std::string>& paths, std::vector<std::string>& skipped);

}  // namespace kvatlas::sim
