// What-if: deployments, one question in full, a million questions as columns; break-even, recommendations, serving.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <thread>

#include "answers/breakeven.hpp"
#include "answers/serving.hpp"
#include "answers/simulate.hpp"
#include "answers/warnings.hpp"
#include "python/native/convert.hpp"
#include "python/native/model_handle.hpp"
#include "sweeps/json.hpp"
#include "sweeps/recommend.hpp"
#include "sweeps/spec.hpp"
#include "sweeps/values.hpp"

namespace kvatlas::python {

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

template <class T>
using Column = py::array_t<T, py::array::c_style | py::array::forcecast>;

/// A deployment prepared once, and the same without compression for what is a ratio to it; made when first asked for.
struct EvaluatorHandle {
  std::shared_ptr<const models::Model> model;
  std::shared_ptr<const sim::Evaluator> evaluator;
  std::shared_ptr<const sim::Evaluator> plain;
};

DeploymentHandle make_deployment(const ModelHandle& m, const std::string& gpu, const std::string& method, const std::string& weights, int tp, int pp, int dp,
                                 int ep, const std::string& engine, double utilization, std::int64_t chunk, const std::string& plan) {
  DeploymentHandle h{.model = m.model, .deployment = {}};
  sim::Deployment& d = h.deployment;
  d.model = h.model.get();
  d.gpu = sim::parse_gpu(gpu);
  d.recipe = Recipe::parse(method);
  d.weights = sim::parse_weight_format(weights);
  d.tp = tp;
  d.pp = pp;
  d.dp = dp;
  d.ep = ep;
  d.engine = engine.empty() ? &sim::default_engine() : &sim::find_engine(engine);
  d.gpu_memory_utilization = utilization;
  d.chunk = Tokens(chunk);
  if (plan != "ideal" && plan != "released") throw InvalidArgument(cat("plan is \"", plan, "\", must be ideal or released"));
  d.released_plan = plan == "released";
  return h;
}

sim::Slo slo_of(std::optional<double> ttft_ms, std::optional<double> tpot_ms) {
  sim::Slo slo;
  if (ttft_ms) slo.ttft_s = *ttft_ms / 1e3;
  if (tpot_ms) slo.tpot_s = *tpot_ms / 1e3;
  return slo;
}

/// NaN stands for "not given" in columns.
std::optional<double> given(double v) { return std::isnan(v) ? std::nullopt : std::optional(v); }

sim::Workload make_workload(std::int64_t prompt, std::int64_t output, double prefix_hit, int turns, std::optional<double> rate, std::optional<int> concurrency,
                            std::optional<double> ttft_ms, std::optional<double> tpot_ms) {
  return {.prompt = Tokens(prompt), .output = Tokens(output), .prefix_hit = prefix_hit, .turns = turns, .rate = rate, .concurrency = concurrency, .slo = slo_of(ttft_ms, tpot_ms)};
}

py::object finish(answers::Json document, const answers::Simulation& a, const answers::Warnings& warnings) {
  document["why_not"] = a.why_not.empty() ? answers::Json(nullptr) : answers::Json(a.why_not);
  document["formulas"] = a.step.formulas;
  document["warnings"] = warnings.sentences();
  document["provenance"] = "computed";
  return to_python(document);
}

py::object ask_step(const DeploymentHandle& h, std::int64_t context, int batch) {
  answers::Warnings warnings;
  answers::Simulation a;
  {
    py::gil_scoped_release free;
    a = answers::microscope(sim::Evaluator(h.deployment), Tokens(context), batch);
    warnings.add_model(*h.model);
    warnings.add_budgets(h.deployment.recipe, Tokens(context));
  }
  return finish(answers::document(a, h.deployment), a, warnings);
}

py::object ask_workload(const DeploymentHandle& h, const sim::Workload& w) {
  answers::Warnings warnings;
  answers::Simulation a;
  {
    py::gil_scoped_release free;
    a = answers::workload(sim::Evaluator(h.deployment), w);
    warnings.add_model(*h.model);
    warnings.add_budgets(h.deployment.recipe, Tokens((w.prompt + w.output).value * w.turns));
  }
  return finish(answers::document(a, h.deployment), a, warnings);
}

/// Calls body(first, last) for stretches of [0, n) on `threads` threads; ends early when `stop` is set. The first exception is rethrown.
template <class Body>
void in_stretches(std::int64_t n, int threads, const std::atomic<bool>& stop, Body&& body) {
  constexpr std::int64_t kStretch = 2048;
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (;;) {
        const std::int64_t first = next.fetch_add(kStretch);
        if (first >= n || stop.load()) return;
        body(first, std::min(n, first + kStretch));
      }
    } catch (...) {
      const std::scoped_lock lock(mutex);
      if (!error) error = std::current_exception();
      next.store(n);
    }
  };
  const std::int64_t most = std::max<std::int64_t>(1, (n + kStretch - 1) / kStretch);
  std::vector<std::jthread> helpers;
  for (std::int64_t t = 1; t < std::min<std::int64_t>(threads, most); ++t) helpers.emplace_back(work);
  work();
  helpers.clear();
  if (error) std::rethrow_exception(error);
}

/// Columns of equal length that are filled outside the interpreter.
class Columns {
 public:
  explicit Columns(py::ssize_t n) : n_(n) {}
  double* number(const char* name) { return add<double>(name); }
  std::uint8_t* code(const char* name) { return add<std::uint8_t>(name); }
  py::dict take() { return std::move(out_); }

 private:
  template <class T>
  T* add(const char* name) {
    py::array_t<T> column(n_);
    T* data = column.mutable_data();
    out_[name] = std::move(column);
    return data;
  }
  py::ssize_t n_;
  py::dict out_;
};

using Handles = std::vector<std::shared_ptr<EvaluatorHandle>>;

void check_columns(const Column<std::int32_t>& which, const Handles& evaluators, std::initializer_list<py::ssize_t> sizes) {
  for (const py::ssize_t size : sizes) KV_ASSERT(size == which.size(), "columns have one length");
  for (py::ssize_t i = 0; i < which.size(); ++i) KV_ASSERT(which.data()[i] < static_cast<std::int32_t>(evaluators.size()), "a point names its deployment");
}

/// One decode step a point. which[i] is the deployment of point i; -1: it cannot be, figures are NaN.
py::dict steps(const Handles& evaluators, const Column<std::int32_t>& which, const Column<std::int64_t>& context, const Column<std::int64_t>& batch, int threads) {
  check_columns(which, evaluators, {context.size(), batch.size()});
  Columns columns(which.size());
  double *step = columns.number("step_ms"), *low = columns.number("low_ms"), *high = columns.number("high_ms"), *attention = columns.number("attention_ms"),
         *matrix = columns.number("matrix_ms"), *method = columns.number("method_ms"), *other = columns.number("other_ms"), *rate = columns.number("tokens_per_s"),
         *cache = columns.number("cache_bytes"), *peak = columns.number("peak_bytes"), *read = columns.number("cache_read_bytes"), *energy = columns.number("energy_j_per_token");
  std::uint8_t *bound = columns.code("bound_by"), *evidence = columns.code("evidence"), *fits = columns.code("fits");
  const std::int32_t* w = which.data();
  const std::int64_t *c = context.data(), *b = batch.data();
  std::atomic<bool> stop{false};
  const auto one = [&](std::int64_t i) {
    if (w[i] < 0) {
      for (double* column : {step, low, high, attention, matrix, method, other, rate, cache, peak, read, energy}) column[i] = kNan;
      bound[i] = evidence[i] = 255;
      fits[i] = 0;
      return;
    }
    if (b[i] < 1 || b[i] > std::numeric_limits<int>::max()) throw InvalidArgument(cat("batch is ", b[i], ", must be from 1 to ", std::numeric_limits<int>::max()));
    const sim::Evaluator& e = *evaluators[static_cast<std::size_t>(w[i])]->evaluator;
    const int sequences = static_cast<int>(b[i]);
    const sim::StepFigures f = e.step(Tokens(c[i]), sequences);
    step[i] = 1e3 * f.step_s;
    low[i] = 1e3 * f.low_s;
    high[i] = 1e3 * f.high_s;
    attention[i] = 1e3 * f.attention_s;
    matrix[i] = 1e3 * f.matrix_s;
    method[i] = 1e3 * f.method_s;
    other[i] = 1e3 * f.other_s;
    rate[i] = f.tokens_per_s(sequences) * e.deployment().dp;
    cache[i] = f.cache_bytes;
    peak[i] = f.peak_bytes;
    read[i] = f.cache_read_bytes;
    energy[i] = f.energy_j > 0 ? f.energy_j / sequences : kNan;
    bound[i] = static_cast<std::uint8_t>(f.bound);
    evidence[i] = static_cast<std::uint8_t>(f.evidence);
    fits[i] = f.fits ? 1 : 0;
  };
  until_stopped(stop, [&] {
    in_stretches(which.size(), threads, stop, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) one(i);
    });
    return true;
  });
  return columns.take();
}

/// The step time of the plain cache at each point, in ms; and the size factor. Each (deployment, context, batch) once is the caller's concern.
py::dict step_ratios(const Handles& evaluators, const Column<std::int32_t>& which, const Column<std::int64_t>& context, const Column<std::int64_t>& batch, int threads) {
  check_columns(which, evaluators, {context.size(), batch.size()});
  Columns columns(which.size());
  double *plain = columns.number("plain_step_ms"), *factor = columns.number("size_factor");
  const std::int32_t* w = which.data();
  const std::int64_t *c = context.data(), *b = batch.data();
  std::atomic<bool> stop{false};
  until_stopped(stop, [&] {
    in_stretches(which.size(), threads, stop, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        if (w[i] < 0) {
          plain[i] = factor[i] = kNan;
          continue;
        }
        const EvaluatorHandle& e = *evaluators[static_cast<std::size_t>(w[i])];
        plain[i] = e.plain ? 1e3 * e.plain->step(Tokens(c[i]), static_cast<int>(b[i])).step_s : kNan;
        factor[i] = e.evaluator->size_factor(Tokens(c[i]));
      }
    });
    return true;
  });
  return columns.take();
}

/// One workload a point; NaN in rate, concurrency and limits is "not given". Sentences of what cannot be come as {point: sentence}.
py::tuple workloads(const Handles& evaluators, const Column<std::int32_t>& which, const Column<std::int64_t>& prompt, const Column<std::int64_t>& output,
                    const Column<double>& prefix_hit, const Column<std::int64_t>& turns, const Column<double>& rate, const Column<double>& concurrency,
                    const Column<double>& ttft_limit_ms, const Column<double>& tpot_limit_ms, int threads) {
  check_columns(which, evaluators, {prompt.size(), output.size(), prefix_hit.size(), turns.size(), rate.size(), concurrency.size(), ttft_limit_ms.size(), tpot_limit_ms.size()});
  Columns columns(which.size());
  double *requests = columns.number("requests_per_s"), *low = columns.number("low_requests_per_s"), *high = columns.number("high_requests_per_s"),
         *tokens = columns.number("tokens_per_s"), *ttft = columns.number("ttft_ms"), *tpot = columns.number("tpot_ms"), *prefill = columns.number("prefill_ms"),
         *step = columns.number("step_ms"), *flight = columns.number("concurrency"), *speedup = columns.number("speedup"), *decode = columns.number("speedup_decode_only"),
         *factor = columns.number("size_factor"), *cache = columns.number("cache_bytes"), *peak = columns.number("peak_bytes"), *energy = columns.number("energy_j_per_token"),
         *usd = columns.number("usd_per_mtok");
  std::uint8_t *bound = columns.code("bound_by"), *evidence = columns.code("evidence"), *feasible = columns.code("feasible");
  const auto i32 = [](double v) { return static_cast<int>(v); };
  std::map<std::int64_t, std::string> sentences;
  std::mutex mutex;
  std::atomic<bool> stop{false};
  const auto one = [&](std::int64_t i) {
    for (double* column : {requests, low, high, tokens, ttft, tpot, prefill, step, flight, speedup, decode, factor, cache, peak, energy, usd}) column[i] = kNan;
    bound[i] = evidence[i] = 255;
    feasible[i] = 0;
    const std::int32_t place = which.data()[i];
    if (place < 0) return;
    const EvaluatorHandle& e = *evaluators[static_cast<std::size_t>(place)];
    const auto in_flight = given(concurrency.data()[i]);
    const sim::Workload w = make_workload(prompt.data()[i], output.data()[i], prefix_hit.data()[i], i32(static_cast<double>(turns.data()[i])), given(rate.data()[i]),
                                          in_flight ? std::optional(i32(*in_flight)) : std::nullopt, given(ttft_limit_ms.data()[i]), given(tpot_limit_ms.data()[i]));
    const sim::WorkloadFigures f = e.evaluator->workload(w);
    factor[i] = f.size_factor;
    bound[i] = static_cast<std::uint8_t>(f.bound);
    evidence[i] = static_cast<std::uint8_t>(f.evidence);
    if (!f.feasible) {
      const std::scoped_lock lock(mutex);
      sentences[i] = f.why_not;
      return;
    }
    feasible[i] = 1;
    requests[i] = f.requests_per_s;
    low[i] = f.low_requests_per_s;
    high[i] = f.high_requests_per_s;
    tokens[i] = f.tokens_per_s;
    ttft[i] = 1e3 * f.ttft_s;
    tpot[i] = 1e3 * f.tpot_s;
    prefill[i] = 1e3 * f.prefill_s;
    step[i] = 1e3 * f.step_s;
    flight[i] = static_cast<double>(f.concurrency);
    cache[i] = f.cache_bytes;
    peak[i] = f.peak_bytes;
    if (f.energy_j_per_token > 0) energy[i] = f.energy_j_per_token;
    if (f.usd_per_mtok > 0) usd[i] = f.usd_per_mtok;
    if (!e.plain) return;
    const sim::WorkloadFigures full = e.plain->workload(w);
    if (!full.feasible || full.requests_per_s <= 0) return;
    speedup[i] = f.requests_per_s / full.requests_per_s;
    if (f.step_s > 0 && full.step_s > 0) decode[i] = (static_cast<double>(f.concurrency) / f.step_s) / (static_cast<double>(full.concurrency) / full.step_s);
  };
  until_stopped(stop, [&] {
    in_stretches(which.size(), threads, stop, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last && !stop.load(); ++i) one(i);
    });
    return true;
  });
  py::dict why;
  for (const auto& [point, sentence] : sentences) why[py::int_(point)] = sentence;
  return py::make_tuple(columns.take(), why);
}

py::object breakeven(const DeploymentHandle& h, const std::string& against, std::int64_t context, int batch, std::optional<std::int64_t> output, std::int64_t longest, int largest) {
  sim::BreakevenQuestion q;
  q.deployment = h.deployment;
  q.against = Recipe::parse(against);
  q.context = Tokens(context);
  q.batch = batch;
  q.longest = Tokens(longest);
  q.largest = largest;
  if (output) q.output = Tokens(*output);
  if (q.deployment.recipe.canonical() == q.against.canonical())
    throw InvalidArgument(cat("method and against are both \"", q.against.canonical(), "\", must differ"));
  answers::Warnings warnings;
  warnings.add_model(*h.model);
  warnings.add_budgets(q.deployment.recipe, q.context);
  const sim::Breakeven b = interruptible([&q] { return sim::breakeven(q); });
  answers::Json document = answers::to_json(b, q);
  document["warnings"] = warnings.sentences();
  return to_python(document);
}

py::object recommend(const DeploymentHandle& h, const sim::Workload& w, const std::vector<std::string>& methods, std::optional<double> memory_gib,
                     std::optional<double> min_quality, const std::string& evidence, const std::optional<std::string>& db, const std::optional<std::string>& deployable) {
  sweep::RecommendRequest r;
  r.deployment = h.deployment;
  r.workload = w;
  for (const std::string& pattern : methods)
    for (const std::string& text : sweep::expand_recipe(pattern)) r.candidates.push_back(Recipe::parse(text));
  r.memory_gib = memory_gib;
  r.min_quality = min_quality;
  r.quality_evidence = sweep::parse_grades(evidence);
  r.deployable = deployable;
  r.evidence = sweep::known_quality(db);
  const sweep::RecommendReport report = interruptible([&r] { return sweep::recommend(r); });
  answers::Json document = sweep::to_json(report);
  document["question"] = {{"model", h.model->slug}, {"gpu", sim::canonical(r.deployment.gpu)}, {"weights", sim::name_of(r.deployment.weights)}, {"workload", answers::Json(sweep::to_json(w))}};
  return to_python(document);
}

py::object serve(const DeploymentHandle& h, const sim::Slo& slo, const py::dict& stream_options, std::int64_t sequences, bool disaggregated, int prefill_replicas, int decode_replicas) {
  const auto option = [&](const char* name, auto fallback) { return stream_options.contains(name) ? stream_options[name].cast<decltype(fallback)>() : fallback; };
  sim::ServingSetup setup{.deployment = h.deployment, .sequences = sequences, .disaggregated = disaggregated, .prefill_replicas = prefill_replicas, .decode_replicas = decode_replicas, .slo = slo};
  const std::string trace = option("trace", std::string());
  const double speed = option("speed", 1.0);
  const std::int64_t requests = option("requests", std::int64_t{0});
  sim::StreamRecipe recipe{.requests = requests > 0 ? requests : 1000, .prompt = Tokens(option("prompt", std::int64_t{0})), .output = Tokens(option("output", std::int64_t{0})),
                           .spread = option("spread", 0.0), .prefix_hit = option("prefix_hit", 0.0), .turns = option("turns", 1), .rate = option("rate", 0.0),
                           .users = option("concurrency", 0), .warm = option("warm", false), .seed = option("seed", std::uint64_t{1})};
  const sim::ServingReport report = interruptible([&] {
    const sim::Stream stream = trace.empty() ? sim::make_stream(recipe) : sim::read_trace(trace, speed, requests);
    return sim::serve(setup, stream);
  });
  answers::Json document{{"model", h.model->slug}, {"gpu", sim::canonical(setup.deployment.gpu)}, {"method", setup.deployment.recipe.canonical()},
                         {"weights", sim::name_of(setup.deployment.weights)}, {"disaggregated", disaggregated}};
  document.update(answers::to_json(report, setup));
  answers::Warnings warnings;
  warnings.add_model(*h.model);
  if (report.refused > 0) warnings.add(cat(report.refused, " of ", report.requests, " requests were refused: ", report.refused_why));
  document["warnings"] = warnings.sentences();
  return to_python(document);
}

}  // namespace

void bind_simulation(py::module_& m) {
  py::class_<DeploymentHandle>(m, "DeploymentHandle")
      .def(py::init(&make_deployment))
      .def_property_readonly("recipe", [](const DeploymentHandle& h) { return h.deployment.recipe.canonical(); })
      .def_property_readonly("gpu", [](const DeploymentHandle& h) { return sim::canonical(h.deployment.gpu); })
      .def_property_readonly("model", [](const DeploymentHandle& h) { return h.model->slug; })
      .def("why_not", [](const DeploymentHandle& h) { return sim::why_not(h.deployment); })
      .def("step", &ask_step)
      .def("workload", &ask_workload)
      .def("breakeven", &breakeven)
      .def("recommend", &recommend)
      .def("serve", &serve);

  py::class_<EvaluatorHandle, std::shared_ptr<EvaluatorHandle>>(m, "EvaluatorHandle")
      .def(py::init([](const DeploymentHandle& h) {
        return std::make_shared<EvaluatorHandle>(EvaluatorHandle{.model = h.model, .evaluator = std::make_shared<const sim::Evaluator>(h.deployment), .plain = nullptr});
      }))
      .def("add_plain", [](EvaluatorHandle& h) {
        try {
          h.plain = std::make_shared<const sim::Evaluator>(answers::baseline_of(h.evaluator->deployment()));
        } catch (const Unsupported&) {
          h.plain = nullptr;  // no ratio where the plain cache cannot serve the model
        }
      })
      .def("share_plain", [](EvaluatorHandle& h, const EvaluatorHandle& other) { h.plain = other.plain; });

  py::class_<sim::Workload>(m, "Workload").def(py::init(&make_workload));
  py::class_<sim::Slo>(m, "Slo").def(py::init(&slo_of));
  m.def("parse_slo", [](const std::string& text) {
    const sim::Slo slo = sweep::parse_slo(text);
    const auto ms = [](const std::optional<double>& s) { return s ? std::optional(1e3 * *s) : std::nullopt; };
    return std::pair(ms(slo.ttft_s), ms(slo.tpot_s));
  });
  m.def("steps", &steps);
  m.def("step_ratios", &step_ratios);
  m.def("workloads", &workloads);
  m.def("bound_names", [] {
    std::vector<std::string> out;
    for (int i = 0; i <= static_cast<int>(sim::Bound::memory_capacity); ++i) out.emplace_back(sim::name_of(static_cast<sim::Bound>(i)));
    return out;
  });
  m.def("evidence_names", [] {
    std::vector<std::string> out;
    for (int i = 0; i <= static_cast<int>(sim::Evidence::uncalibrated_format); ++i) out.emplace_back(sim::name_of(static_cast<sim::Evidence>(i)));
    return out;
  });
}

}  // namespace kvatlas::python
