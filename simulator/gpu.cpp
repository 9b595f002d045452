#include "simulator/gpu.hpp"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "core/errors.hpp"
#include "simulator/gpu_files.hpp"
#include "simulator/gpu_json.hpp"
#include "simulator/units_text.hpp"

namespace kvatlas::sim {

namespace {

using enum FigureKind;

constexpr FigureField kFields[] = {
    {"sm_count", "sms", count, &Gpu::sm_count},
    {"clock", "clock_hz", hertz, &Gpu::clock_hz},
    {"memory", "memory_bytes", bytes, &Gpu::memory_bytes},
    {"hbm_bandwidth", "bandwidth", bandwidth, &Gpu::hbm_bandwidth},
    {"l2", "l2_bytes", bytes, &Gpu::l2_bytes},
    {"l2_bandwidth", "", bandwidth, &Gpu::l2_bandwidth},
    {"fp32_flops", "fp32", flops, &Gpu::fp32_flops},
    {"fp16_flops", "fp16", flops, &Gpu::fp16_flops},
    {"bf16_flops", "bf16", flops, &Gpu::bf16_flops},
    {"fp8_flops", "fp8", flops, &Gpu::fp8_flops},
    {"int8_ops", "int8", flops, &Gpu::int8_ops},
    {"fp4_flops", "fp4", flops, &Gpu::fp4_flops},
    {"int4_ops", "int4", flops, &Gpu::int4_ops},
    {"shared_memory_per_sm", "", bytes, &Gpu::shared_memory_per_sm},
    {"registers_per_sm", "", bytes, &Gpu::registers_per_sm},
    {"max_warps_per_sm", "", count, &Gpu::max_warps_per_sm},
    {"pcie_bandwidth", "pcie", bandwidth, &Gpu::pcie_bandwidth},
    {"nvlink_bandwidth", "nvlink", bandwidth, &Gpu::nvlink_bandwidth},
    {"tdp", "tdp_watts", watts, &Gpu::tdp_watts},
    {"stream_fraction", "", fraction, &Gpu::stream_fraction},
    {"gemv_fraction", "", fraction, &Gpu::gemv_fraction},
    {"attention_fraction", "", fraction, &Gpu::attention_fraction},
    {"gemm_bf16_flops", "", flops, &Gpu::gemm_bf16_flops},
    {"launch_stream", "launch_stream_s", seconds, &Gpu::launch_stream_s},
    {"launch_graph", "launch_graph_s", seconds, &Gpu::launch_graph_s},
    {"attention_floor", "attention_floor_s", seconds, &Gpu::attention_floor_s},
    {"usd_per_hour", "price", usd_per_hour, &Gpu::usd_per_hour},
};

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

std::vector<Gpu> load() {
  std::vector<Gpu> gpus;
  for (const GpuFile& file : gpu_files()) gpus.push_back(gpu_from_json(nlohmann::json::parse(file.text)));
  std::sort(gpus.begin(), gpus.end(), [](const Gpu& a, const Gpu& b) { return a.slug < b.slug; });
  return gpus;
}

const Gpu* lookup(std::string_view name) {
  const std::string wanted = lower(name);
  for (const Gpu& gpu : all_gpus()) {
    if (gpu.slug == wanted || lower(gpu.name) == wanted) return &gpu;
    for (const std::string& alias : gpu.aliases)
      if (lower(alias) == wanted) return &gpu;
  }
  return nullptr;
}

const FigureField* find_field(std::string_view key) {
  for (const FigureField& f : kFields)
    if (f.key == key || (!f.short_key.empty() && f.short_key == key)) return &f;
  return nullptr;
}

}  // namespace

std::span<const FigureField> figure_fields() { return kFields; }

std::span<const Gpu> all_gpus() {
  static const std::vector<Gpu> gpus = load();
  return gpus;
}

const Gpu& find_gpu(std::string_view name) {
  if (const Gpu* gpu = lookup(name)) return *gpu;
  std::vector<std::string> lowered;
  for (const Gpu& gpu : all_gpus()) {
    lowered.push_back(gpu.slug);
    for (const std::string& alias : gpu.aliases) lowered.push_back(lower(alias));
  }
  // "h10" is the beginning of "h100" rather than a slip in "a10".
  const std::string wanted = lower(name);
  std::vector<std::string_view> candidates(lowered.begin(), lowered.end());
  std::stable_sort(candidates.begin(), candidates.end(), [&](std::string_view a, std::string_view b) {
    const bool a_begins = a.starts_with(wanted), b_begins = b.starts_with(wanted);
    return a_begins != b_begins ? a_begins : a_begins && a.size() < b.size();
  });
  throw InvalidArgument(unknown_name("GPU", wanted, candidates));
}

Gpu parse_gpu(std::string_view text) {
  const std::size_t colon = text.find(':');
  Gpu gpu = find_gpu(text.substr(0, colon));
  if (colon == std::string_view::npos) return gpu;
  const Gpu original = gpu;
  std::vector<const FigureField*> changed;
  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const std::size_t comma = rest.find(',');
    const std::string_view change = rest.substr(0, comma);
    const std::size_t equals = change.find('=');
    const std::string_view key = change.substr(0, equals);
    const FigureField* field = find_field(key);
    if (field == nullptr) {
      std::vector<std::string_view> keys;
      for (const FigureField& f : kFields) keys.push_back(f.key);
      throw InvalidArgument(unknown_name("figure of a GPU", key, keys));
    }
    if (std::find(changed.begin(), changed.end(), field) != changed.end())
      throw InvalidArgument(cat("GPU is \"", text, "\", which changes ", field->key, " twice, must change a figure at most once"));
    changed.push_back(field);
    const std::string_view value = equals == std::string_view::npos ? std::string_view{} : change.substr(equals + 1);
    const auto parsed = parse_quantity(field->kind, value);
    const bool may_be_zero = field->member == &Gpu::nvlink_bandwidth;
    if (!parsed || (*parsed == 0 && !may_be_zero))
      throw InvalidArgument(cat(field->key, " is \"", value, "\", must be ", allowed_units(field->kind)));
    gpu.*field->member = {.value = *parsed, .source = "what-if"};
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  // What a library reaches is a share of the peak: a faster peak moves it along unless it was changed by itself.
  if (gpu.bf16_flops.value != original.bf16_flops.value && gpu.gemm_bf16_flops.known() &&
      gpu.gemm_bf16_flops.value == original.gemm_bf16_flops.value)
    gpu.gemm_bf16_flops = {.value = *gpu.gemm_bf16_flops.value * (*gpu.bf16_flops.value / *original.bf16_flops.value),
                           .source = "what-if, scaled with bf16_flops"};
  return gpu;
}

std::string canonical(const Gpu& gpu) {
  const Gpu& original = find_gpu(gpu.slug);
  std::string text = gpu.slug;
  bool first = true;
  for (const FigureField& f : kFields) {
    const Figure& figure = gpu.*f.member;
    if (figure.value == (original.*f.member).value || !figure.known()) continue;
    // Base units, shortest digits that read back to the same value.
    const std::string_view unit = f.kind == bytes ? "B" : f.kind == bandwidth ? "B/s" : f.kind == seconds ? "s"
                                  : f.kind == hertz ? "Hz" : f.kind == watts ? "W"
                                  : f.kind == flops ? "FLOPS" : "";
    text += cat(first ? ":" : ",", f.key, "=", *figure.value, unit);
    first = false;
  }
  return text;
}

}  // namespace kvatlas::sim
