#include "simulator/reported.hpp"

#include <algorithm>
#include <charconv>
#include <fmt/core.h>
#include <iterator>
#include <memory>
#include <optional>
#include <tuple>

#include "models/hf_config.hpp"
#include "models/registry.hpp"
#include "simulator/fit.hpp"
#include "simulator/measured_row.hpp"
#include "simulator/step_model.hpp"

namespace kvatlas::sim {

namespace {

/// What is compared of an engine: a decode step, a batch of prompts, requests from prompt to last token.
enum class ReportedQuantity : std::uint8_t { step, prompts, requests };

struct ReportedMetric {
  std::string_view name;
  ReportedQuantity quantity;
  bool rate;         // more is faster
  bool with_units;   // the baseline's figure is its own time or rate, not 1
};
constexpr ReportedMetric kReportedMetrics[] = {{"decode_rate", ReportedQuantity::step, true, true},      {"decode_rate_ratio", ReportedQuantity::step, true, false},
                                               {"tpot", ReportedQuantity::step, false, true},            {"tpot_ratio", ReportedQuantity::step, false, false},
                                               {"ttft", ReportedQuantity::prompts, false, true},         {"max_throughput", ReportedQuantity::requests, true, true}};

/// A model that reports name: one of the zoo, or a config. `attention_only`: nothing but its attention layers is known.
struct ReportedModel {
  std::string_view name, slug, config;
  bool attention_only = false;
};
constexpr ReportedModel kReportedModels[] = {
    {"Qwen3-8B", "qwen3-8b", ""},
    {"Qwen3-30B-A3B", "qwen3-30b-a3b", ""},
    {"Llama-3-8B", "llama-3.1-8b", ""},
    {"Llama-2-7B", "llama-2-7b", ""},
    {"Llama-2-13B", "llama-2-13b", ""},
    {"Llama-2-70B", "llama-2-70b", ""},
    {"Mistral-7B", "mistral-7b-v0.2", ""},
    // config.json of Qwen/Qwen3-4B
    {"Qwen3-4B", "", R"({"model_type": "qwen3", "torch_dtype": "bfloat16", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
      "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000.0,
      "rms_norm_eps": 1e-06, "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": true})"},
    // config.json of Qwen/Qwen1.5-72B
    {"Qwen1.5-72B", "", R"({"model_type": "qwen2", "torch_dtype": "bfloat16", "hidden_size": 8192, "intermediate_size": 24576, "num_hidden_layers": 80,
      "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 152064, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
      "rms_norm_eps": 1e-06, "hidden_act": "silu", "tie_word_embeddings": false})"},
    // TheTom/llama-cpp-turboquant#102 names its attention: 16 layers with 4 kv heads of 256, 6 query heads each
    {"Qwen3.8-27B-IQ3_S", "", R"({"model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 6144, "intermediate_size": 6144, "num_hidden_layers": 16,
      "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 32000, "max_position_embeddings": 262144, "rope_theta": 10000.0,
      "rms_norm_eps": 1e-06, "hidden_act": "silu"})", true},
};

/// Kernels of an engine are of the released class (they unpack where they stand) but for those written for their format's tensor-core layout.
struct ReportedEngine {
  std::string_view begins, slug;
  bool released;
};
constexpr ReportedEngine kReportedEngines[] = {{"vllm", "vllm", true}, {"llama.cpp", "llama.cpp", true}, {"qserve", "trtllm", false}};

/// Kernels that are reported on their own, as tables of timings name them.
struct ReportedKernel {
  std::string_view name, framework, kernel;
};
constexpr ReportedKernel kReportedKernels[] = {{"flashinfer", "sglang-0", "flashinfer"}, {"flash-attention-3", "vllm-0", "vllm_flash_attn_fa3"}};

/// What a method or a baseline is called, the cache that it is and the weights that come with it.
struct ReportedCache {
  std::string_view name, recipe;
  std::vector<WeightFormat> weights = {WeightFormat::bf16};
};
const std::vector<ReportedCache>& reported_caches() {
  // 4-bit weights with 8-bit products read like the one and multiply like the other format: each pass takes the faster.
  static const std::vector<ReportedCache> caches{
      {"f16", "full"}, {"f16/f16", "full"}, {"fp16", "full"}, {"bf16", "full"}, {"fp8", "fp8_kv"}, {"fp8_e4m3", "fp8_kv"}, {"fp8_e5m2", "fp8_kv:format=e5m2"},
      {"q8_0", "llama.cpp:q8_0"}, {"q8_0/q8_0", "llama.cpp:q8_0"}, {"q8_0/turbo4", "k=llamacpp_kv;v=turboquant:v_bits=4"}, {"turbo3", "turboquant"}, {"turbo4", "turboquant:k_bits=4,v_bits=4"},
      {"turboquant_k8v4", "vllm:turboquant_k8v4"}, {"turboquant_3bit_nc-preopt", "vllm:turboquant_3bit_nc"}, {"turboquant_3bit_nc-opt", "vllm:turboquant_3bit_nc"},
      {"turboquant_4bit_nc", "vllm:turboquant_4bit_nc"}, {"int8_per_token_head", "vllm:int8_per_token_head"},
      {"W4A8KV4", "qserve_kv4", {WeightFormat::int4_wo, WeightFormat::int8}}, {"trtllm-W8A8", "full", {WeightFormat::int8}}, {"trtllm-W4A16", "full", {WeightFormat::int4_wo}}};
  return caches;
}

/// "8192" or "512+128": prompt and output.
std::optional<std::pair<std::int64_t, std::int64_t>> lengths_of(std::string_view text) {
  const auto number = [](std::string_view s) {
    std::int64_t v = 0;
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), v);
    return error == std::errc{} && end == s.data() + s.size() && v > 0 && v <= (1 << 24) ? v : 0;
  };
  const std::size_t plus = text.find('+');
  const std::int64_t prompt = number(text.substr(0, plus)), output = plus == std::string_view::npos ? 0 : number(text.substr(plus + 1));
  if (prompt == 0 || (plus != std::string_view::npos && output == 0)) return std::nullopt;
  return std::pair{prompt, output};
}

/// Seconds of one side with the ends of its interval.
struct TimeSpan {
  double seconds = 0, low = 0, high = 0;
};

struct ReportedSetup {
  ReportedQuantity quantity = ReportedQuantity::step;
  const models::Model* model = nullptr;
  bool attention_only = false;
  Gpu gpu{};
  const Engine* engine = nullptr;
  bool released = false;
  std::int64_t prompt = 0, output = 0, batch = 1;
};

Deployment deployment_of(const ReportedSetup& s, const ReportedCache& cache, WeightFormat weights, bool released) {
  Deployment d;
  d.model = s.model, d.gpu = s.gpu, d.engine = s.engine, d.weights = weights, d.released_plan = released;
  d.recipe = Recipe::parse(cache.recipe);
  return d;
}

TimeSpan figures_of(const StepFigures& f) { return {f.step_s, f.low_s, f.high_s}; }

/// Time of one pass of one side: the faster of its weight formats.
template <class Pass>
TimeSpan fastest(const ReportedSetup& s, const ReportedCache& cache, Pass&& pass) {
  TimeSpan best;
  for (const WeightFormat w : cache.weights) {
    const TimeSpan span = pass(Evaluator(deployment_of(s, cache, w, s.released)));
    if (best.seconds == 0 || span.seconds < best.seconds) best = span;
  }
  return best;
}

/// The kernels of a decode step that touch the cache.
TimeSpan kernels_of(const ReportedSetup& s, const ReportedCache& cache) {
  const Tokens prompt(s.prompt), context(s.prompt + s.output / 2);
  const auto batch = static_cast<int>(s.batch);
  const StepModel ideal(deployment_of(s, cache, cache.weights.front(), false)), released(deployment_of(s, cache, cache.weights.front(), true));
  const double fast = ideal.decode_kernels_s(prompt, context, batch), slow = released.decode_kernels_s(prompt, context, batch);
  const Calibration& c = shipped_calibration();
  const auto [low, high] = interval_factors(c, KernelFamily::decode, c.find_gpu(s.gpu.slug) >= 0 ? Evidence::fitted : Evidence::other_gpu);
  return {s.released ? slow : fast, fast * low, slow * high};
}

TimeSpan time_of(const ReportedSetup& s, const ReportedCache& cache) {
  const Tokens prompt(s.prompt), context(s.prompt + s.output / 2);
  const auto batch = static_cast<int>(s.batch);
  switch (s.quantity) {
    case ReportedQuantity::step: return fastest(s, cache, [&](const Evaluator& e) { return figures_of(e.step(prompt, context, batch)); });
    case ReportedQuantity::prompts: return fastest(s, cache, [&](const Evaluator& e) { return figures_of(e.explain_prefill(prompt, batch).figures); });
    case ReportedQuantity::requests: break;
  }
  // A batch from its prompts to its last tokens, by request: what does not fit runs as several.
  std::int64_t fits = 1;
  for (const WeightFormat w : cache.weights)
    fits = std::max(fits, std::min(s.batch, Evaluator(deployment_of(s, cache, w, s.released)).memory(prompt, Tokens(s.prompt + s.output), 1).max_batch));
  const auto resident = static_cast<int>(fits);
  const TimeSpan prefill = fastest(s, cache, [&](const Evaluator& e) { return figures_of(e.explain_prefill(prompt, 1).figures); });
  const TimeSpan step = fastest(s, cache, [&](const Evaluator& e) { return figures_of(e.step(prompt, context, resident)); });
  const double steps = static_cast<double>(s.output) / resident;
  return {prefill.seconds + steps * step.seconds, prefill.low + steps * step.low, prefill.high + steps * step.high};
}

class ReportedReader {
 public:
  explicit ReportedReader(std::string_view name) : name_(name) {}

  ReportedCheck read(const CsvTable& table) {
    MeasuredRow row(table.header, name_);
    row.need({"gpu", "framework", "model", "method", "metric", "batch", "context", "baseline", "baseline_value", "value", "unit", "source"});
    if (table.rows.empty()) throw InvalidArgument(cat(name_, " has no rows below its header"));
    for (const CsvRow& r : table.rows) {
      row.read(r);
      const double baseline = row.positive("baseline_value"), value = row.positive("value");
      std::string why;
      try {
        why = compare(row, baseline, value);
      } catch (const Unsupported& refusal) {
        why = refusal.what();
      }
      if (!why.empty())
        out_.left_out.push_back({cat(row.text("gpu"), " ", row.text("framework"), " ", row.text("model"), " ", row.text("method"), " ", row.text("metric"), " (", row.text("source"), ")"), why});
    }
    return std::move(out_);
  }

 private:
  /// Adds the figure, or says why not.
  std::string compare(const MeasuredRow& row, double baseline, double value) {
    const auto by_name = [](const auto& list, const std::string& name) {
      return std::find_if(std::begin(list), std::end(list), [&](const auto& entry) { return entry.name == name; });
    };
    if (row.text("metric") == "attention_ms") return compare_kernels(row, baseline, value);
    const auto* metric = by_name(kReportedMetrics, row.text("metric"));
    if (metric == std::end(kReportedMetrics)) return cat(row.text("metric"), " states no batch and lengths that could be computed");
    const auto* model = by_name(kReportedModels, row.text("model"));
    if (model == std::end(kReportedModels)) return cat("no description of the model ", row.text("model"));
    const auto* engine = std::find_if(std::begin(kReportedEngines), std::end(kReportedEngines), [&](const ReportedEngine& e) { return row.text("framework").starts_with(e.begins); });
    if (engine == std::end(kReportedEngines)) return cat("no profile of ", row.text("framework"));
    ReportedSetup s{.quantity = metric->quantity, .attention_only = model->attention_only, .released = engine->released};
    try {
      // The same memory, link and SMs at a lower power limit.
      s.gpu = find_gpu(row.text("gpu") == "H200-NVL" ? "h200" : row.text("gpu"));
    } catch (const InvalidArgument&) {
      return cat("no description of GPU ", row.text("gpu"));
    }
    const auto lengths = lengths_of(row.text("context"));
    if (!lengths) return cat("context \"", row.text("context"), "\" is no length");
    std::tie(s.prompt, s.output) = *lengths;
    if (row.text("batch").empty() || row.text("batch").find_first_not_of("0123456789") != std::string::npos) return cat("batch \"", row.text("batch"), "\" is no number");
    s.batch = row.count("batch");
    const auto method = by_name(reported_caches(), row.text("method")), plain = by_name(reported_caches(), row.text("baseline"));
    if (method == reported_caches().end()) return cat("no recipe for ", row.text("method"));
    if (plain == reported_caches().end()) return cat("no recipe for the baseline ", row.text("baseline"));
    if (s.attention_only && !(s.quantity == ReportedQuantity::step && metric->with_units))
      return cat("of ", row.text("model"), " only the attention is known");
    s.model = model_of(*model);
    s.engine = &find_engine(engine->slug);

    ReportedFigure f = named(row);
    f.published = metric->rate ? value / baseline : baseline / value;
    if (s.attention_only && s.quantity == ReportedQuantity::step) {
      // The rest of the step is the baseline's reported time less the kernels that its cache takes.
      const double step = metric->rate ? static_cast<double>(s.batch) / baseline : baseline * 1e-3, rest = std::max(0.0, step - kernels_of(s, *plain).seconds);
      const TimeSpan ours = kernels_of(s, *method);
      f.predicted = step / (rest + ours.seconds), f.low = step / (rest + ours.high), f.high = step / (rest + ours.low);
      f.how = "kernels on the cache, in place of the baseline's within its reported step";
    } else {
      const double base = time_of(s, *plain).seconds;
      const TimeSpan ours = time_of(s, *method);
      f.predicted = base / ours.seconds, f.low = base / ours.high, f.high = base / ours.low;
      f.how = s.quantity == ReportedQuantity::prompts ? "a batch of prompts" : s.quantity == ReportedQuantity::requests ? "a batch from its prompts to its last tokens" : "whole decode step";
    }
    out_.figures.push_back(std::move(f));
    return {};
  }

  /// One layer's attention as a kernel is timed alone; the model's name is its shape: "attn(128q/16kv/128)".
  std::string compare_kernels(const MeasuredRow& row, double baseline, double value) {
    const auto* kernel = std::find_if(std::begin(kReportedKernels), std::end(kReportedKernels), [&](const ReportedKernel& k) { return k.name == row.text("framework"); });
    if (kernel == std::end(kReportedKernels)) return cat("no profile of ", row.text("framework"));
    const std::string& shape = row.text("model");
    std::string sizes;
    for (std::size_t i = 0; i < shape.size(); ++i)
      if (shape[i] >= '0' && shape[i] <= '9') sizes += shape[i];
      else if (!sizes.empty() && sizes.back() != ',') sizes += ',';
    if (std::count(sizes.begin(), sizes.end(), ',') != 3 || !sizes.ends_with(',')) return cat("model \"", shape, "\" is no shape of query heads, kv heads and width");
    const auto timed = [&](std::string_view column) {
      const std::string dtype = row.text(column) == "fp8" ? "fp8" : "bf16";
      const std::string text = cat("gpu,source,framework,kernel,heads,kv_heads,head_dim,batch,context,window,q_dtype,kv_dtype,measured_ms\n", row.text("gpu"), ",reported,", kernel->framework, ",", kernel->kernel, ",",
                                   sizes, row.text("batch"), ",", row.text("context"), ",0,bf16,", dtype, ",1\n");
      return read_measurements(text, name_).front();
    };
    const Calibration& c = shipped_calibration();
    const Prediction base = predict(c, timed("baseline")), ours = predict(c, timed("method"));
    const auto [low, high] = interval_factors(c, KernelFamily::decode, ours.evidence);
    ReportedFigure f = named(row);
    f.published = baseline / value;
    f.predicted = base.seconds / ours.seconds, f.low = f.predicted / high, f.high = f.predicted / low;
    f.how = cat("one layer's attention: ", ours.profile, " over ", base.profile);
    out_.figures.push_back(std::move(f));
    return {};
  }

  static ReportedFigure named(const MeasuredRow& row) {
    return {.gpu = row.text("gpu"), .framework = row.text("framework"), .model = row.text("model"), .method = row.text("method"), .baseline = row.text("baseline"),
            .metric = row.text("metric"), .batch = row.text("batch"), .context = row.text("context"), .source = row.text("source")};
  }

  const models::Model* model_of(const ReportedModel& m) {
    if (!m.slug.empty()) return &models::find_model(m.slug);
    auto& kept = imported_[std::string(m.name)];
    if (!kept) kept = std::make_unique<models::Model>(models::import_config(m.config, m.name));
    return kept.get();
  }

  std::string name_;
  std::map<std::string, std::unique_ptr<models::Model>, std::less<>> imported_;
  ReportedCheck out_;
};

std::string share_text(int n, std::size_t of) { return fmt::format("{} of {} ({:.0f} %)", n, of, of > 0 ? 100.0 * n / static_cast<double>(of) : 0.0); }

}  // namespace

int ReportedCheck::directions_right() const {
  return static_cast<int>(std::count_if(figures.begin(), figures.end(), [](const ReportedFigure& f) { return f.direction_right(); }));
}

int ReportedCheck::inside() const {
  return static_cast<int>(std::count_if(figures.begin(), figures.end(), [](const ReportedFigure& f) { return f.inside(); }));
}

ReportedCheck check_reported(std::string_view csv, std::string_view name) { return ReportedReader(name).read(parse_csv(csv, name)); }

std::string to_text(const ReportedCheck& check) {
  std::string out = "compressed caches as reported elsewhere: speed over the baseline's (above 1 is faster); * lies outside our interval, ! is the wrong direction\n";
  for (const ReportedFigure& f : check.figures)
    out += fmt::format("  {}{} {:>6.3f} reported, {:>6.3f} ours ({:.3f} - {:.3f}): {} over {}, {}, batch {}, {}, {}, {}; {}\n", f.inside() ? ' ' : '*', f.direction_right() ? ' ' : '!',
                       f.published, f.predicted, f.low, f.high, f.method, f.baseline, f.metric, f.batch, f.context, f.model, cat(f.gpu, ", ", f.framework), f.source);
  out += cat("direction right: ", share_text(check.directions_right(), check.figures.size()), "; inside the interval: ", share_text(check.inside(), check.figures.size()), "; without enough setup: ",
             check.left_out.size(), "\n");
  for (const UnreportedFigure& u : check.left_out) out += cat("  not computed: ", u.row, ": ", u.why, "\n");
  return out;
}

}  // namespace kvatlas::sim
