#include "simulator/discrete.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>

#include "core/errors.hpp"
#include "simulator/constants.hpp"
#include "simulator/fit.hpp"
#include "simulator/kernel_model.hpp"
#include "simulator/measured_row.hpp"

namespace kvatlas::sim {

DiscreteMachine discrete_machine(const Machine& m, const GpuConstants& g, double query_tile, double row_values, double values_per_entry, double rate) {
  SmoothMax entry;
  entry.add(4 * query_tile * row_values / (m.achieved / m.sms));  // scores and weighted values, 2 flop each
  entry.add(values_per_entry / (rate * m.clock));
  return {.sms = m.sms, .bandwidth = g.c[bandwidth_share] * m.bandwidth, .entry_s = entry.value(), .start_s = constant(C::kernel_latencies) * constant(C::dram_latency_s)};
}

double discrete_s(const DiscreteMachine& m, const std::vector<DiscreteItem>& items) {
  struct Running {
    double end, dram_bytes;  // the common advance at which it ends, in entries
    bool operator<(const Running& other) const { return end > other.end; }
  };
  std::priority_queue<Running> running;
  const auto places = static_cast<std::size_t>(m.sms * kItemsOfAnSm);
  double seconds = 0, advance = 0, dram = 0;
  std::size_t next = 0;
  double pace = 0;  // seconds that all take for one entry
  const auto start = [&] {
    for (; next < items.size() && running.size() < places; ++next) {
      running.push({advance + items[next].entries + (pace > 0 ? m.start_s / pace : 0), items[next].dram_bytes});
      dram += items[next].dram_bytes;
    }
  };
  for (start(); !running.empty(); start()) {
    const double tensor = m.entry_s * std::max(1.0, static_cast<double>(running.size()) / m.sms), memory = dram / m.bandwidth;
    pace = std::sqrt(tensor * tensor + memory * memory);
    seconds += (running.top().end - advance) * pace;
    advance = running.top().end;
    while (!running.empty() && running.top().end <= advance) dram -= running.top().dram_bytes, running.pop();
    dram = running.empty() ? 0 : std::max(dram, 0.0);
  }
  return seconds;
}

namespace {

/// An item whose start costs an SM as much as some entries, which read nothing.
DiscreteItem started_item(double entries, double dram_bytes, double start_entries) {
  return {entries + start_entries, dram_bytes * entries / (entries + start_entries)};
}

/// Items of caches that are cut every `longest` entries, as the longest of them is.
std::vector<DiscreteItem> items_of(const std::vector<double>& lengths, double longest, double tiles, double entry_bytes) {
  std::vector<DiscreteItem> items;
  for (const double length : lengths)
    for (double at = 0; at < length; at += longest)
      for (double t = 0; t < tiles; ++t) items.push_back({std::min(longest, length - at), entry_bytes / tiles});
  return items;
}

DecodeWork uniform_work(const RaggedWork& w, double heads, double length) {
  const double entries = heads * length;
  return {.heads = heads, .group = w.group, .length = length, .bytes = entries * w.entry_bytes, .values = entries * w.entry_values, .row_values = w.row_values,
          .tensor_flops = entries * w.group * 4 * w.row_values, .vector_flops = entries * w.group * 5};
}

double query_tiles(const Profile& p, const RaggedWork& w) { return std::ceil(w.group / p.query_tile - 1e-9); }

/// The items of the batch, launches apart.
double items_s(const Machine& m, const GpuConstants& g, const Profile& p, const RaggedWork& w, const std::vector<double>& lengths, const DecodeTerms& cut, double rate) {
  const double entries = std::max(1.0, std::ceil(cut.item_entries / p.tile - 1e-9)) * p.tile;  // kernels cut between tiles
  const DiscreteMachine d = discrete_machine(m, g, p.query_tile, w.row_values, w.entry_values, rate);
  return discrete_s(d, items_of(lengths, entries, query_tiles(p, w), w.entry_bytes));
}

DecodeTerms cut_of(const Machine& m, const GpuConstants& g, const Profile& p, const RaggedWork& w, double heads, double longest, double rate) {
  return decode_terms(m, g, p, uniform_work(w, heads, longest), kCold, rate);
}

}  // namespace

RaggedTime ragged_decode(const Machine& m, const GpuConstants& g, const Profile& p, const RaggedWork& w, double rate) {
  if (w.lengths.empty()) throw InvalidArgument("lengths are empty, must name at least one cache");
  for (const double length : w.lengths)
    if (!(length >= 1)) throw InvalidArgument(cat("length is ", length, ", must be at least 1 entry"));
  const double heads = static_cast<double>(w.lengths.size()), mean = std::accumulate(w.lengths.begin(), w.lengths.end(), 0.0) / heads;
  RaggedTime t{.uniform_s = decode_terms(m, g, p, uniform_work(w, heads, mean), kCold, rate).seconds()};
  if (std::all_of(w.lengths.begin(), w.lengths.end(), [&](double l) { return l == w.lengths.front(); })) {
    t.seconds = t.uniform_s;
    return t;
  }
  const DecodeTerms own = cut_of(m, g, p, w, heads, *std::max_element(w.lengths.begin(), w.lengths.end()), rate), even = cut_of(m, g, p, w, heads, mean, rate);
  const double launches = own.launch + own.split;
  t.penalty = (launches + items_s(m, g, p, w, w.lengths, own, rate)) / (launches + items_s(m, g, p, w, std::vector<double>(w.lengths.size(), mean), even, rate));
  t.seconds = t.uniform_s * t.penalty;
  return t;
}

std::vector<double> spread_lengths(std::size_t count, double mean, double variation) {
  // (p + 1) q^p has the mean 1 and the variation p / sqrt(2 p + 1) over q in (0, 1).
  constexpr double kMost = 4;
  const double wanted = std::clamp(variation, 0.0, kMost);
  int power = 1;
  const auto of_power = [](int p) { return p / std::sqrt(2.0 * p + 1); };
  while (of_power(power) < wanted) power *= 2;
  const double part = wanted / of_power(power);
  std::vector<double> lengths;
  // A stride near the golden section that meets every rank once.
  std::size_t stride = std::max<std::size_t>(1, count * 618 / 1000);
  while (std::gcd(stride, count) != 1) ++stride;
  for (std::size_t i = 0; i < count; ++i) {
    const double rank = (static_cast<double>(i * stride % count) + 0.5) / static_cast<double>(count);
    double tail = power + 1;
    for (int k = 0; k < power; ++k) tail *= rank;
    lengths.push_back(std::max(1.0, mean * (1 - part + part * tail)));
  }
  return lengths;
}

double discrete_uniform_s(const Machine& m, const GpuConstants& g, const Profile& p, double heads, double length, const RaggedWork& w, double rate) {
  const DecodeTerms cut = cut_of(m, g, p, w, heads, length, rate);
  return cut.launch + cut.split + items_s(m, g, p, w, std::vector<double>(static_cast<std::size_t>(heads), length), cut, rate);
}

namespace {

/// What the rows of both tables share: 16-bit caches read by the engine's decode kernel.
struct RaggedShape {
  Machine machine;
  GpuConstants gpu;
  Profile profile, prompts;
  double rate, heads, kv_heads, dim, low, high;
  double entry_bytes() const { return 2 * dim * 2; }  // keys and values
};

RaggedShape ragged_shape(const MeasuredRow& row, const Calibration& c) {
  const Gpu& gpu = row.gpu();
  const double heads = row.count("heads"), kv_heads = row.count("kv_heads");
  if (std::fmod(heads, kv_heads) != 0) row.fail("heads", "a multiple of kv_heads");
  const int profile = c.deployed_profile(KernelFamily::decode, "vllm", gpu.compute_capability, 16, static_cast<int>(heads / kv_heads));
  const auto [low, high] = interval_factors(c, KernelFamily::decode, c.find_gpu(gpu.slug) >= 0 ? Evidence::extrapolated : Evidence::other_gpu);
  return {.machine = machine_of(gpu), .gpu = c.constants_of(gpu), .profile = c.profiles[static_cast<std::size_t>(profile)],
          .prompts = c.profiles[static_cast<std::size_t>(c.deployed_profile(KernelFamily::prefill, "vllm", gpu.compute_capability, 16, 1))], .rate = value_rate(gpu.compute_capability.c_str(), CodeFormat::plain(Dtype::bf16)).ideal, .heads = heads, .kv_heads = kv_heads,
          .dim = static_cast<double>(row.count("head_dim")), .low = low, .high = high};
}

EndToEndFigure skewed_figure(const MeasuredRow& row, const Calibration& c) {
  const RaggedShape s = ragged_shape(row, c);
  const int sequences = row.count("n_decode"), big = row.count("n_big");
  if (big > sequences) row.fail("n_big", "at most n_decode");
  RaggedWork w{.lengths = {}, .group = s.heads / s.kv_heads, .row_values = s.dim, .entry_bytes = s.entry_bytes(), .entry_values = 2 * s.dim};
  for (double head = 0; head < s.kv_heads; ++head)
    for (int i = 0; i < sequences; ++i) w.lengths.push_back(row.count(i < sequences - big ? "kv_small" : "kv_big"));
  EndToEndFigure f{.kind = "skewed_decode", .gpu = row.text("gpu"), .framework = "vllm", .model = row.text("model"), .weights = "bf16", .text = {}};
  f.measured_s = row.positive("skewed_us") / row.positive("uniform_mean_us");
  f.predicted_s = ragged_decode(s.machine, s.gpu, s.profile, w, s.rate).penalty;
  f.low_s = f.predicted_s * s.low, f.high_s = f.predicted_s * s.high, f.roofline_s = 1;
  f.text = cat(sequences, " sequences, ", big, " of ", row.text("kv_big"), ", the others of ", row.text("kv_small"));
  return f;
}

/// Times that memory delivers the decodes' caches to a kernel that gives every query head items of its own, head after head: once where they stay in L2
/// from head to head or where all heads of a group run together, an item an SM; else once for each of the turns that a group takes.
double reads_of_caches(const RaggedShape& s, double decodes, double context) {
  const double group = s.heads / s.kv_heads, together = std::clamp(std::floor(s.machine.sms / std::max(1.0, decodes)), 1.0, group);
  const double stays = resident(decodes * context * s.entry_bytes() / s.machine.l2_bytes, s.gpu.c[l2_share]);
  return stays + (1 - stays) * std::ceil(group / together);
}

/// A call with a prompt's chunk runs a kernel for prompts: tiles of 64 query rows, one each for the row of every query head of a decode, none cut. Every
/// sequence gets as many blocks as the longest prompt has tiles: those beyond its own end read its length and quit.
EndToEndFigure mixed_figure(const MeasuredRow& row, const Calibration& c) {
  constexpr double kRows = 64;
  const RaggedShape s = ragged_shape(row, c);
  const double chunk = row.count("prefill_chunk", 0), cached = row.count("kv_prefill", 0), decodes = row.count("n_decode", 0), context = row.count("kv_decode", 0);
  const auto& k = s.prompts.c;
  const double tensor_s = 4 * kRows * s.dim / (k[prefill_tensor_share] * s.machine.achieved), exp_s = 5 * kRows / (k[prefill_exp_share] * s.machine.vector);
  const DiscreteMachine d{.sms = s.machine.sms, .bandwidth = s.gpu.c[bandwidth_share] * s.machine.bandwidth, .entry_s = (tensor_s + exp_s) * s.machine.sms};
  const auto item = [&](double entries, double dram_bytes) { return started_item(entries, dram_bytes, k[prefill_item] / d.entry_s); };
  const double group = s.heads / s.kv_heads, tiles = std::ceil(chunk / kRows), reads = reads_of_caches(s, decodes, context);
  const double empty_s = std::max(0.0, tiles - 1) * decodes * s.heads * constant(C::dram_latency_s) / (s.machine.sms * kItemsOfAnSm);
  std::vector<DiscreteItem> items;
  double bytes = 0;
  for (double head = 0; head < s.heads; ++head) {
    for (double tile = 0; tile < tiles; ++tile) items.push_back(item(cached + std::min(chunk, (tile + 1) * kRows), s.entry_bytes() / (tiles * group)));
    for (double i = 0; i < decodes && context > 0; ++i) items.push_back(item(context, s.entry_bytes() * reads / group));
  }
  bytes = s.kv_heads * s.entry_bytes() * (decodes * context + cached + chunk);
  EndToEndFigure f{.kind = "mixed_batch", .gpu = row.text("gpu"), .framework = "vllm", .model = row.text("model"), .weights = "bf16", .text = {}};
  f.measured_s = row.positive("measured_ms") * 1e-3;
  f.predicted_s = k[prefill_launch] + empty_s + discrete_s(d, items);
  f.low_s = f.predicted_s * s.low, f.high_s = f.predicted_s * s.high;
  f.roofline_s = std::max(bytes / s.machine.bandwidth, 4 * s.heads * s.dim * (chunk * (cached + chunk / 2) + decodes * context) / s.machine.tensor);
  f.text = cat("chunk of ", chunk, " over ", cached, " with ", decodes, " decodes of ", context);
  return f;
}

}  // namespace

std::vector<EndToEndFigure> read_ragged(std::string_view csv, std::string_view name, const Calibration& calibration) {
  const CsvTable table = parse_csv(csv, name);
  MeasuredRow row(table.header, name);
  const bool skewed = row.has("n_big");
  if (skewed) row.need({"gpu", "model", "heads", "kv_heads", "head_dim", "n_decode", "n_big", "kv_small", "kv_big", "uniform_mean_us", "skewed_us"});
  else row.need({"gpu", "model", "heads", "kv_heads", "head_dim", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "measured_ms"});
  if (table.rows.empty()) throw InvalidArgument(cat(name, " has no rows below its header"));
  std::vector<EndToEndFigure> out;
  for (const CsvRow& r : table.rows) {
    row.read(r);
    out.push_back(skewed ? skewed_figure(row, calibration) : mixed_figure(row, calibration));
  }
  return out;
}

}  // namespace kvatlas::sim
