#include "simulator/compare.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>

#include "core/errors.hpp"
#include "core/kernels/attention.hpp"
#include "simulator/kernel_model.hpp"
#include "simulator/step_model.hpp"

namespace kvatlas::sim {

namespace {

struct Errors {
  std::vector<double> ours, roofline, scaled, signed_ours;
  std::int64_t covered = 0;
};

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::size_t>(q * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

ErrorFigures figures(const std::vector<double>& errors) {
  double sum = 0;
  for (const double e : errors) sum += e;
  return {.median = quantile(errors, 0.5), .mean = errors.empty() ? 0 : sum / static_cast<double>(errors.size()), .p90 = quantile(errors, 0.9)};
}

std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> cells(1);
  for (const char c : line) {
    if (c == ',') {
      cells.emplace_back();
    } else if (c != '\r') {
      cells.back() += c;
    }
  }
  return cells;
}

class Columns {
 public:
  explicit Columns(const std::string& header) {
    const std::vector<std::string> names = split(header);
    for (std::size_t i = 0; i < names.size(); ++i) at_[names[i]] = i;
    for (const char* needed : {"gpu", "heads", "kv_heads", "head_dim", "window", "batch", "context", "kv_dtype", "measured_ms", "l2x"})
      if (!at_.contains(needed)) throw InvalidArgument(cat("decode-attention timings: column ", needed, " is missing"));
    width_ = names.size();
  }
  void read(const std::string& line, std::int64_t number) {
    cells_ = split(line);
    line_ = number;
    if (cells_.size() != width_)
      throw InvalidArgument(cat("decode-attention timings: line ", number, " has ", cells_.size(), " cells, must have ", width_));
  }
  const std::string& text(const char* name) const { return cells_[at_.at(name)]; }
  double number(const char* name) const {
    const std::string& cell = text(name);
    double value = 0;
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    if (error != std::errc{} || end != cell.data() + cell.size() || !(value >= 0) || !std::isfinite(value))
      throw InvalidArgument(cat("decode-attention timings: line ", line_, ": ", name, " is \"", cell, "\", must be a number"));
    return value;
  }
  int count(const char* name) const { return static_cast<int>(number(name)); }

 private:
  std::map<std::string, std::size_t, std::less<>> at_;
  std::vector<std::string> cells_;
  std::size_t width_ = 0;
  std::int64_t line_ = 0;
};

Comparison summary(const std::string& gpu, const Errors& e) {
  const auto n = static_cast<std::int64_t>(e.ours.size());
  return {.gpu = gpu, .rows = n, .ours = figures(e.ours), .roofline = figures(e.roofline), .scaled = figures(e.scaled),
          .bias = quantile(e.signed_ours, 0.5), .coverage = n > 0 ? static_cast<double>(e.covered) / static_cast<double>(n) : 0};
}

}  // namespace

ComparisonReport compare_decode_attention(std::istream& csv) {
  ComparisonReport report;
  std::map<std::string, Errors> errors;
  Errors all;
  std::optional<Columns> columns;
  std::string line;
  for (std::int64_t number = 1; std::getline(csv, line); ++number) {
    if (line.empty() || line.front() == '#') continue;
    if (!columns) {
      columns.emplace(line);
      continue;
    }
    columns->read(line, number);
    const double context = columns->number("context"), measured = columns->number("measured_ms") * 1e-3;
    if (columns->number("l2x") <= 2 || context < 1024) {
      ++report.skipped;
      continue;
    }
    if (!(measured > 0)) throw InvalidArgument(cat("decode-attention timings: line ", number, ": measured_ms must be positive"));
    const std::string& name = columns->text("gpu");
    const Gpu& gpu = find_gpu(name);
    const double window = columns->number("window");
    const Tokens tokens(static_cast<std::int64_t>(window > 0 ? std::min(window, context) : context));
    const int heads = columns->count("heads"), kv_heads = columns->count("kv_heads"), dim = columns->count("head_dim");
    if (kv_heads < 1 || heads % kv_heads != 0)
      throw InvalidArgument(cat("decode-attention timings: line ", number, ": heads is ", heads, ", must be a multiple of kv_heads (", kv_heads, ")"));
    const CodeFormat format = columns->text("kv_dtype") == "fp8" ? CodeFormat{.kind = CodeKind::fp8, .bits = 8} : CodeFormat::plain(Dtype::bf16);
    const int batch = columns->count("batch");
    const KernelModel model(gpu, true, 0, false);
    const KernelTime t = model.time(kernels::DecodeAttention{.sequences = batch, .kv_heads = kv_heads, .q_per_kv = heads / kv_heads, .k_dim = dim,
                                                             .v_dim = dim, .tokens = tokens, .k_format = format, .v_format = format}
                                        .call(1));
    const KernelCall merge = kernels::SpanMerge{.rows = std::int64_t{batch} * heads, .v_dim = dim, .tokens = tokens}.call(1);
    const double ours = t.ideal_s + (merge.launches > 0 ? model.time(merge).ideal_s : 0);
    const double bytes = static_cast<double>(tokens.value) * batch * kv_heads * 2.0 * dim * format.bits / 8;
    const double peak = bytes / *gpu.hbm_bandwidth.value, scaled = peak / 0.8 + 3e-6;
    const bool fitted = gpu.attention_fraction.source.starts_with("measured");
    const auto [low, high] = StepModel::widths(fitted ? Evidence::fitted : Evidence::other_gpu);
    for (Errors* e : {&errors[name], &all}) {
      e->ours.push_back(std::fabs(ours / measured - 1));
      e->roofline.push_back(std::fabs(peak / measured - 1));
      e->scaled.push_back(std::fabs(scaled / measured - 1));
      e->signed_ours.push_back(ours / measured - 1);
      if (measured >= ours * low && measured <= ours * high) ++e->covered;
    }
  }
  for (const auto& [gpu, e] : errors) report.by_gpu.push_back(summary(gpu, e));
  report.by_gpu.push_back(summary("*", all));
  return report;
}

std::string to_text(const ComparisonReport& report) {
  std::string out = fmt::format("{:<18}{:>7}  {:>22}  {:>22}  {:>22}  {:>7}{:>10}\n", "gpu", "rows", "ours med/mean/p90 %", "roofline med/mean/p90",
                                "0.8 peak + 3us", "bias %", "inside %");
  const auto three = [](const ErrorFigures& f) { return fmt::format("{:.1f} / {:.1f} / {:.1f}", f.median * 100, f.mean * 100, f.p90 * 100); };
  for (const Comparison& c : report.by_gpu)
    out += fmt::format("{:<18}{:>7}  {:>22}  {:>22}  {:>22}  {:>7.1f}{:>10.1f}\n", c.gpu, c.rows, three(c.ours), three(c.roofline), three(c.scaled),
                       c.bias * 100, c.coverage * 100);
  return out + cat("not compared (warm or short): ", report.skipped, " rows\n");
}

}  // namespace kvatlas::sim
