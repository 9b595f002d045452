#include "simulator/measurements.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/errors.hpp"
#include "core/io/csv.hpp"
#include "core/io/file.hpp"
#include "core/kernels/attention.hpp"
#include "simulator/constants.hpp"
#include "simulator/measured_row.hpp"

namespace kvatlas::sim {

namespace {

struct Heads {
  int query = 1, kv = 1, dim = 1;
};
Heads heads_of(const MeasuredRow& row) {
  const Heads h{row.count("heads"), row.count("kv_heads"), row.count("head_dim")};
  if (h.query % h.kv != 0) row.fail("heads", cat("a multiple of kv_heads (", h.kv, ")"));
  return h;
}

/// One cache a sequence, read by all heads: values are the first latent_dim of its rows of latent_dim + rope_dim.
void read_latent(const MeasuredRow& row, Measurement& m) {
  const int heads = row.count("heads"), latent = row.count("latent_dim"), rope = row.count("rope_dim"), context = row.count("context");
  const std::int64_t batch = row.count("batch");
  const CodeFormat format = row.fp8("kv_dtype") ? CodeFormat{.kind = CodeKind::fp8, .bits = 8} : CodeFormat::plain(Dtype::bf16);
  const DecodeWork work = decode_work(kernels::DecodeAttention{.sequences = batch, .q_per_kv = heads, .k_dim = latent + rope, .v_dim = latent, .tokens = Tokens(context),
                                                               .k_format = format, .v_format = format, .latent = true}
                                          .call(1));
  m.family = KernelFamily::latent;
  m.bits = format.bits;
  m.group = heads;
  m.batch = static_cast<double>(batch);
  m.length = context;
  m.bytes = static_cast<double>(batch) * context * (latent + rope) * format.bits / 8;
  m.flops = work.tensor_flops;
  m.l2_fill = m.bytes / *m.gpu->l2_bytes.value;
  m.subset = m.l2_fill > 2 && context >= 1024 ? Subset::cold : context < 1024 || m.seconds < 50e-6 ? Subset::overhead : Subset::warm;
  m.shape = cat(heads, " heads, latent of ", latent);
  m.text = cat(m.shape, ", batch ", batch, ", context ", context, ", ", format.bits == 8 ? "fp8" : "bf16");
  m.work = work;
}

void read_decode(const MeasuredRow& row, Measurement& m) {
  const Heads h = heads_of(row);
  const int context = row.count("context"), window = row.count("window", 0);
  const Tokens tokens(window > 0 ? std::min(window, context) : context);
  const std::int64_t batch = row.count("batch");
  const bool fp8 = row.fp8("kv_dtype");
  const CodeFormat format = fp8 ? CodeFormat{.kind = CodeKind::fp8, .bits = 8} : CodeFormat::plain(Dtype::bf16);
  const KernelCall call = kernels::DecodeAttention{.sequences = batch, .kv_heads = h.kv, .q_per_kv = h.query / h.kv, .k_dim = h.dim, .v_dim = h.dim,
                                                   .tokens = tokens, .k_format = format, .v_format = format}
                              .call(1);
  const DecodeWork work = decode_work(call);
  m.family = KernelFamily::decode;
  m.bits = format.bits;
  m.group = h.query / h.kv;
  m.batch = static_cast<double>(batch);
  m.length = static_cast<double>(context);
  m.bytes = static_cast<double>(tokens.value * batch * h.kv * 2 * h.dim * format.bits / 8);
  m.flops = work.tensor_flops;
  m.l2_fill = m.bytes / *m.gpu->l2_bytes.value;
  const double l2x = row.has("l2x") ? row.number("l2x") : m.l2_fill;
  m.subset = l2x > 2 && context >= 1024 ? Subset::cold : context < 1024 || m.seconds < 50e-6 ? Subset::overhead : l2x < 2 ? Subset::warm : Subset::cold;
  m.shape = cat(h.query, "/", h.kv, " heads of ", h.dim, window > 0 ? cat(", window ", window) : std::string{});
  m.text = cat(m.shape, ", batch ", batch, ", context ", context, ", ", fp8 ? "fp8" : "bf16");
  m.work = work;
}

void read_prefill(const MeasuredRow& row, Measurement& m) {
  const Heads h = heads_of(row);
  const std::int64_t tokens = row.count("seq_len"), batch = row.count("batch");
  const KernelCall call = kernels::PrefillAttention{.sequences = batch, .kv_heads = h.kv, .q_per_kv = h.query / h.kv, .k_dim = h.dim, .v_dim = h.dim,
                                                    .chunk = Tokens(tokens)}
                              .call(1);
  m.family = KernelFamily::prefill;
  // Products in fp8 (q_dtype) and a cache in fp8 (kv_dtype) are different kernels.
  const bool fp8 = row.fp8("kv_dtype");
  m.bits = row.has("q_dtype") && row.fp8("q_dtype") ? 4 : fp8 ? 8 : 16;
  m.group = h.query / h.kv;
  m.batch = static_cast<double>(batch);
  m.length = static_cast<double>(tokens);
  const PrefillWork work = prefill_work(call);
  m.bytes = work.bytes;
  m.flops = call.operations.tensor_flops;
  m.subset = m.seconds < 50e-6 ? Subset::overhead : Subset::cold;
  m.shape = cat(h.query, "/", h.kv, " heads of ", h.dim);
  m.text = cat(m.shape, ", batch ", batch, ", ", tokens, " tokens, ", fp8 ? "fp8" : "bf16");
  m.work = work;
}

void read_matrix(const MeasuredRow& row, Measurement& m) {
  struct Format {
    const char* name;
    double weight_bytes, activation_bytes;
  };
  static constexpr Format kFormats[] = {{"bf16", 2, 2}, {"fp8", 1, 1}, {"nvfp4", 4.5 / 8, 0.5}, {"int8_wo", 1, 2}, {"int4_wo", 4.25 / 8, 2}};
  const std::string& name = row.text("gemm_dtype");
  const auto* format = std::find_if(std::begin(kFormats), std::end(kFormats), [&](const Format& f) { return name == f.name; });
  if (format == std::end(kFormats)) row.fail("gemm_dtype", "bf16, fp8, nvfp4, int8_wo or int4_wo");
  MatrixWork w{.groups = 1, .m = 1.0 * row.count("m"), .n = 1.0 * row.count("n"), .k = 1.0 * row.count("k"), .weight_bytes = format->weight_bytes,
               .activation_bytes = format->activation_bytes};
  const double bf16 = *m.gpu->bf16_flops.value;
  if (name == "fp8") w.speedup = m.gpu->fp8_flops.or_else(bf16) / bf16;
  if (name == "nvfp4") w.speedup = m.gpu->fp4_flops.or_else(bf16) / bf16;
  m.family = KernelFamily::matrix;
  m.kernel = name;
  m.bits = 0;
  m.length = w.m;
  m.batch = w.m;
  m.bytes = w.n * w.k * w.weight_bytes + w.m * (w.k * w.activation_bytes + w.n * 2);
  m.flops = 2 * w.m * w.n * w.k;
  m.speedup = w.speedup;
  m.subset = m.seconds < 20e-6 ? Subset::overhead : Subset::cold;
  m.shape = cat(w.n, " x ", w.k);
  m.text = cat(m.shape, ", ", w.m, " tokens, ", name);
  // The published products were timed in turn on copies of the weight, as many as fill L2 but at most so many, as the timings of boards with a
  // large L2 show: they run at L2 speed where the copies fit, which is up to a fifth of L2 and at whole fractions of it.
  const double most = constant(C::timed_copies);
  const double l2 = *m.gpu->l2_bytes.value, weight = w.n * w.k * w.weight_bytes;
  w.l2_fill = m.l2_fill = std::clamp(std::ceil(l2 / weight), 1.0, most) * weight / l2;
  m.work = w;
}

void read_collective(const MeasuredRow& row, Measurement& m) {
  struct Operation {
    std::string_view text, name;
    double rounds;
  };
  // The eager form of an engine's own all-reduce is its kernel and the host's call.
  static constexpr Operation kOperations[] = {
      {"all_reduce", "all_reduce", 2},       {"custom_allreduce:TRTLLM", "all_reduce", 2}, {"custom_allreduce:vLLM_custom_graph", "all_reduce", 2}, {"custom_allreduce:vLLM_custom_eager", "all_reduce_eager", 2},
      {"reduce_scatter", "reduce_scatter", 1}, {"all_gather", "all_gather", 1},              {"alltoall", "all_to_all", 1}};
  const std::string& text = row.text("op");
  const auto* operation = std::find_if(std::begin(kOperations), std::end(kOperations), [&](const Operation& o) { return text == o.text; });
  if (operation == std::end(kOperations)) row.fail("op", "all_reduce, reduce_scatter, all_gather, alltoall or custom_allreduce:TRTLLM, :vLLM_custom_graph, :vLLM_custom_eager");
  constexpr double kElementBytes = 2;  // the published messages are counted in these
  const CollectiveWork w{.ranks = 1.0 * row.count("gpus", 2), .message = kElementBytes * row.positive("message_elems_or_bytes"), .rounds = operation->rounds};
  m.family = KernelFamily::collective;
  m.framework = row.text("lib").substr(0, row.text("lib").find('-'));
  m.kernel = collective_kernel(*m.gpu, operation->name);
  m.bits = 0;
  m.length = w.message;
  m.batch = w.ranks;
  m.bytes = m.flops = w.sent();
  m.speedup = 1e9;  // a link has no peak of operations
  m.bytes_per_s = machine_of(*m.gpu).link;
  m.subset = m.seconds < 50e-6 ? Subset::overhead : Subset::cold;
  // A cell: among boards alone the same operation of other boards would speak for it.
  m.shape = cat(m.gpu_text, ", ", m.framework, " ", operation->name, " of ", w.ranks);
  m.text = cat(m.framework, " ", operation->name, " of ", w.ranks, ", ", w.message, " bytes");
  m.work = w;
}

KernelFamily family_of(const MeasuredRow& row) {
  if (row.has("message_elems_or_bytes")) return KernelFamily::collective;
  if (row.has("latent_dim")) return KernelFamily::latent;
  return row.has("gemm_dtype") ? KernelFamily::matrix : row.has("seq_len") ? KernelFamily::prefill : KernelFamily::decode;
}

}  // namespace

const char* name_of(Subset subset) {
  static constexpr const char* kNames[] = {"cold", "overhead", "warm"};
  return kNames[static_cast<std::size_t>(subset)];
}

const char* kind_of(KernelFamily family) {
  static constexpr const char* kKinds[] = {"decode_attention", "prefill_attention", "gemm", "comm", "mla_decode"};
  return kKinds[static_cast<std::size_t>(family)];
}

std::vector<Measurement> read_measurements(std::string_view csv, std::string_view name) {
  const CsvTable table = parse_csv(csv, name);
  MeasuredRow row(table.header, name);
  row.need({"gpu", "measured_ms"});
  const KernelFamily family = family_of(row);
  switch (family) {
    case KernelFamily::decode: row.need({"heads", "kv_heads", "head_dim", "window", "batch", "context", "kv_dtype"}); break;
    case KernelFamily::prefill: row.need({"heads", "kv_heads", "head_dim", "batch", "seq_len", "kv_dtype"}); break;
    case KernelFamily::matrix: row.need({"gemm_dtype", "m", "n", "k"}); break;
    case KernelFamily::latent: row.need({"heads", "latent_dim", "rope_dim", "batch", "context", "kv_dtype"}); break;
    case KernelFamily::collective: row.need({"lib", "op", "gpus", "message_elems_or_bytes"}); break;
  }
  if (table.rows.empty()) throw InvalidArgument(cat(name, " has no rows below its header"));
  std::vector<Measurement> out;
  for (const CsvRow& r : table.rows) {
    row.read(r);
    Measurement m;
    m.gpu_text = row.text("gpu");
    m.gpu = &row.gpu();
    if (row.has("framework")) m.framework = row.text("framework").substr(0, row.text("framework").find('-'));
    if (row.has("kernel")) m.kernel = row.text("kernel");
    m.seconds = row.positive("measured_ms") * 1e-3;
    m.bytes_per_s = *m.gpu->hbm_bandwidth.value;
    switch (family) {
      case KernelFamily::decode: read_decode(row, m); break;
      case KernelFamily::prefill: read_prefill(row, m); break;
      case KernelFamily::matrix: read_matrix(row, m); break;
      case KernelFamily::collective: read_collective(row, m); break;
      case KernelFamily::latent: read_latent(row, m); break;
    }
    out.push_back(std::move(m));
  }
  return out;
}

namespace {

/// Published figures that are no timings of one uniform kernel call; what compares them never fits.
bool is_other_kind(std::string_view stem) {
  constexpr std::string_view kOther[] = {"compressed_kv_reported", "skewed_decode", "mixed_batch_attention"};
  return stem.starts_with("e2e_") || std::find(std::begin(kOther), std::end(kOther), stem) != std::end(kOther);
}

}  // namespace

std::vector<Measurement> load_measurements(const std::vector<std::string>& paths, std::vector<std::string>& skipped) {
  std::vector<Measurement> out;
  const auto append = [&](std::vector<Measurement> rows) { std::move(rows.begin(), rows.end(), std::back_inserter(out)); };
  const auto append_file = [&](const std::string& path) { append(read_measurements(io::read_text(path), path)); };
  const auto stem_of = [](const std::string& path) { return std::filesystem::path(path).stem().string(); };
  if (paths.empty()) {
    for (const char* name : {"decode_attention_sample.csv", "prefill_attention_sample.csv", "gemm_sample.csv", "comm_sample.csv", "mla_decode_sample.csv"}) append(read_measurements(embedded_data(name), name));
    return out;
  }
  for (const std::string& path : paths) {
    std::error_code none;
    if (!std::filesystem::is_directory(path, none)) {
      if (is_other_kind(stem_of(path))) skipped.push_back(path);
      else append_file(path);
      continue;
    }
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.path().extension() == ".csv") files.push_back(entry.path().string());
    std::sort(files.begin(), files.end());
    bool any = false;
    for (const std::string& file : files) {
      const std::string stem = stem_of(file);
      if (stem != "decode_attention" && stem != "prefill_attention" && stem != "gemm" && stem != "comm" && stem != "mla_decode") {
        skipped.push_back(file);
        continue;
      }
      append_file(file);
      any = true;
    }
    if (!any) throw InvalidArgument(cat(path, " has none of decode_attention.csv, prefill_attention.csv, gemm.csv, comm.csv, mla_decode.csv"));
  }
  return out;
}

}  // namespace kvatlas::sim
