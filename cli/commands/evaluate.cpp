// evaluate: quality through the compressed cache, on a model's weights or on captured queries, keys and values.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/evaluation.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "core/io/safetensors.hpp"
#include "models/evaluation/captured.hpp"
#include "models/evaluation/task_protocol.hpp"
#include "models/evaluation/tasks.hpp"
#include "models/evaluation/text_protocol.hpp"

namespace kvatlas::cli {

namespace {

using models::Estimate;

const Usage& evaluate_usage() {
  static const Usage u{
      .command = "evaluate", .positional = "", .least = 0, .most = 0,
      .example = "kvatlas evaluate --weights smollm2.gguf --text book.txt --method kivi:bits=2 --method snapkv:budget=256 --context 1K",
      .options = join({weight_options(),
                       {Option::text("capture", "DIR", "captured q, k, v instead of weights (see `kvatlas capture`)"),
                        Option::list("method", "M", "method and parameters; give it several times, they share the dense pass"),
                        Option::size("context", 16, 1 << 20, "tokens of the prompt", "1024"),
                        Option::choice("protocol", {"a", "b"}, "a: compress the prompt, then score token by token; b: compress every chunk", "a"),
                        Option::size("scored", 8, 1 << 20, "tokens that are scored in a window", "256"),
                        Option::integer("windows", 1, 4096, "pieces of the text", "1"),
                        Option::size("chunk", 1, 1 << 20, "tokens of a chunk in protocol b", "512"),
                        Option::text("tasks", "LIST", "retrieval tasks: all, or some of passkey,multi_needle,kv_lookup,copy,few_shot"),
                        Option::integer("trials", 1, 100000, "cases of each task", "20"),
                        Option::integer("probes", 1, 4096, "tokens decoded in each captured prompt", "32"),
                        Option::text("trained", "FILE", "safetensors of trained parts, where a method needs them"),
                        Option::integer("seed", 0, 2147483647, "seed of the bootstrap, of tasks and of methods that draw", "0")}}),
      .note = "`full` is always scored; intervals are 95% of a paired bootstrap against it. `tied`: the change is below what a\n"
              "run of this size detects in four of five cases. Grades: M measured on this model, C error on captured rows."};
  return u;
}

std::vector<std::string> parse_tasks(const Parsed& p) {
  if (!p.has("tasks")) return {};
  std::vector<std::string> tasks;
  const std::string& text = p.text("tasks");
  if (text == "all") return {models::all_tasks().begin(), models::all_tasks().end()};
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string task = text.substr(at, comma - at);
    if (std::ranges::find(models::all_tasks(), task) == models::all_tasks().end()) throw UsageError(cat("--tasks: ", unknown_name("task", task, models::all_tasks())));
    if (std::ranges::find(tasks, task) == tasks.end()) tasks.push_back(task);
    at = comma + 1;
  }
  return tasks;
}

/// Parameters of the recipe's main method, by name, in their own types.
Json params_of(const Recipe& recipe) {
  Json params = Json::object();
  const MethodChoice& choice = recipe.rules().back().key;
  for (std::size_t i = 0; i < choice.method->params.size(); ++i)
    params[choice.method->params[i].name] = param_value(choice.method->params[i], choice.row[i]);
  return params;
}

Json pair(const Estimate& e) { return Json::array({e.ci95[0], e.ci95[1]}); }

double mean_of(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return x.empty() ? 0 : sum / static_cast<double>(x.size());
}

/// What all rows of a run say.
struct Run {
  std::string quality_model, text_hash, protocol, grade;
  std::int64_t context = 0, seed = 0;
  Dtype dtype = Dtype::bf16;
};

/// A row with every key of the contract; what was not measured is null.
Json empty_row(const Run& run, const std::string& label, const Recipe* recipe) {
  Json row{{"method", label}, {"params", recipe == nullptr ? Json::object() : params_of(*recipe)}, {"quality_model", run.quality_model},
           {"context", run.context}, {"protocol", run.protocol}, {"seed", run.seed}, {"text_hash", run.text_hash},
           {"dtype", name_of(run.dtype)}};
  for (const char* key : {"n", "perplexity", "perplexity_full", "delta_perplexity", "kl_mean", "kl_p99", "kl_max", "top1_agreement", "ci95",
                          "min_detectable", "verdict", "attention_rel_error", "attention_rel_error_by_layer", "retained_mass", "tasks",
                          "stored_bytes", "dense_bytes", "size_factor"})
    row[key] = nullptr;
  row["grade"] = run.grade;
  row["provenance"] = "measured";
  row["failure"] = nullptr;
  return row;
}

void fill_bytes(Json& row, Bytes stored, Bytes dense) {
  row["stored_bytes"] = stored.value;
  row["dense_bytes"] = dense.value;
  row["size_factor"] = stored.value > 0 ? Json(static_cast<double>(dense.value) / static_cast<double>(stored.value)) : Json(nullptr);
}

void fill_text(Json& row, const models::TextResult& r, const models::TextSummary& s, bool baseline) {
  row["n"] = s.n;
  row["perplexity"] = s.perplexity.value;
  row["perplexity_full"] = s.perplexity_full.value;
  row["delta_perplexity"] = s.delta_perplexity.value;
  row["kl_mean"] = s.kl_mean.value;
  row["kl_p99"] = s.kl_p99;
  row["kl_max"] = s.kl_max;
  row["top1_agreement"] = s.top1_agreement.value;
  row["ci95"] = {{"perplexity", pair(s.perplexity)}, {"delta_perplexity", pair(s.delta_perplexity)}, {"kl_mean", pair(s.kl_mean)},
                 {"top1_agreement", pair(s.top1_agreement)}};
  row["min_detectable"] = {{"delta_perplexity", s.delta_perplexity.min_detectable}, {"kl_mean", s.kl_mean.min_detectable},
                           {"top1_agreement", s.top1_agreement.min_detectable}};
  row["verdict"] = baseline ? Json("baseline") : Json(models::name_of(models::verdict_of(s)));
  row["attention_rel_error"] = mean_of(r.attention_error);
  row["attention_rel_error_by_layer"] = r.attention_error;
  fill_bytes(row, r.stored, r.dense);
}

void fill_tasks(Json& row, const models::TaskResults& r, const models::Bootstrap& bootstrap) {
  Json tasks = Json::object();
  for (const models::TaskResult& t : r.tasks) {
    Json task{{"n", t.exact[0].size()}};
    Json intervals = Json::object();
    for (std::size_t way = 0; way < models::kAsked.size(); ++way) {
      const Estimate e = models::mean_of_trials(t.exact[way], bootstrap);
      task[models::kAsked[way]] = e.value;
      task[cat(models::kAsked[way], "_log_probability")] = mean_of(t.log_probability[way]);
      intervals[models::kAsked[way]] = pair(e);
    }
    task["ci95"] = intervals;
    tasks[t.task] = task;
  }
  row["tasks"] = tasks;
}

std::string spell_json(const Json& value, const char* format = "{:.4g}") {
  return value.is_number() ? fmt::format(fmt::runtime(format), value.get<double>()) : "-";
}

void print_rows(const Streams& io, const Json& rows, const Run& run) {
  io.out << run.quality_model << ", context " << run.context << ", " << name_of(run.dtype) << ", protocol " << run.protocol << ", grade " << run.grade << "\n\n";
  Table table({{"method"}, {"size", Align::right}, {"perplexity", Align::right}, {"change", Align::right}, {"+-", Align::right},
               {"KL mean", Align::right}, {"KL p99", Align::right}, {"top-1", Align::right}, {"attn err", Align::right}, {"verdict"}});
  for (const Json& r : rows) {
    const Json& detectable = r.at("min_detectable");
    table.add({r.at("method").get<std::string>(), spell_json(r.at("size_factor"), "{:.2f}x"), spell_json(r.at("perplexity")),
               spell_json(r.at("delta_perplexity"), "{:+.3g}"), detectable.is_null() ? "-" : spell_json(detectable.at("delta_perplexity"), "{:.2g}"),
               spell_json(r.at("kl_mean"), "{:.3g}"), spell_json(r.at("kl_p99"), "{:.3g}"), spell_json(r.at("top1_agreement"), "{:.3f}"),
               spell_json(r.at("attention_rel_error"), "{:.3g}"),
               r.at("failure").is_string() ? r.at("failure").get<std::string>() : r.at("verdict").is_string() ? r.at("verdict").get<std::string>() : "-"});
  }
  table.print(io.out, 2);
  bool headed = false;
  Table tasks({{"method"}, {"task"}, {"before", Align::right}, {"after", Align::right}, {"second", Align::right}, {"n", Align::right}});
  for (const Json& r : rows)
    if (r.at("tasks").is_object())
      for (const auto& [name, t] : r.at("tasks").items()) {
        headed = true;
        tasks.add({r.at("method").get<std::string>(), name, spell_json(t.at("before"), "{:.2f}"), spell_json(t.at("after"), "{:.2f}"),
                   spell_json(t.at("second"), "{:.2f}"), spell_json(t.at("n"), "{:.0f}")});
      }
  if (headed) {
    io.out << "\n  exact matches: question before compression, after it, second question on the same cache\n";
    tasks.print(io.out, 2);
  }
}

Json evaluate_capture(const Parsed& p, const std::vector<Recipe>& recipes, const OpenInputs& inputs, Run& run) {
  const models::CapturedSet set = models::read_captures(p.text("capture"), run.dtype);
  run.quality_model = set.model;
  run.protocol = "captured";
  run.grade = "C";
  for (const models::CapturedPrompt& prompt : set.prompts) run.context = std::max(run.context, prompt.tokens);
  Json rows = Json::array();
  for (const Recipe& recipe : recipes) {
    Json row = empty_row(run, recipe.canonical(), &recipe);
    try {
      const models::CapturedScore score = models::score_captured(set, recipe, inputs, p.integer("probes"));
      row["n"] = score.probes;
      row["attention_rel_error"] = mean_of(score.attention_error);
      row["attention_rel_error_by_layer"] = score.attention_error;
      fill_bytes(row, score.stored, score.dense);
    } catch (const Error& e) {
      row["failure"] = e.what();
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

Json evaluate_weights(const Parsed& p, const Streams& io, const std::vector<Recipe>& recipes, OpenInputs inputs, TensorMap& trained, Run& run) {
  const std::vector<std::string> tasks = parse_tasks(p);
  const std::string text = read_text_file(p.text("text"));
  run.text_hash = models::text_hash(text);
  const models::LoadedModel model = load_model_weights(p, io, "evaluate");
  run.quality_model = model.name;
  run.protocol = p.text("protocol");
  run.grade = "M";
  run.context = p.integer("context");
  CacheShape shape = model.transformer.model().cache;
  shape.dtype = run.dtype;
  const auto progress = progress_on(io);

  // Methods that look at W_o find it without a file: the weights are here.
  for (const Recipe& recipe : recipes)
    for (const Rule& rule : recipe.rules())
      if (std::ranges::find(rule.key.method->needs, Need::output_weights) != rule.key.method->needs.end() && !trained.contains("layer0.w_o")) {
        TensorMap weights = model.transformer.output_weights();
        trained.merge(weights);
      }
  inputs.trained = trained.empty() ? nullptr : &trained;

  std::vector<models::Candidate> candidates;
  std::vector<const Recipe*> of_candidate;
  std::map<const Recipe*, std::string> refused;
  for (const Recipe& recipe : recipes) {
    if (recipe.canonical() == "full") continue;
    try {
      candidates.push_back(models::candidate_of(recipe, shape, inputs));
      of_candidate.push_back(&recipe);
    } catch (const Error& e) {
      refused[&recipe] = e.what();
    }
  }
  models::TextOptions options{.protocol = p.text("protocol") == "a" ? models::Protocol::a : models::Protocol::b, .context = run.context,
                              .scored = p.integer("scored"), .windows = p.integer("windows"), .chunk = p.integer("chunk"),
                              .begin = model.begin(), .progress = progress};
  std::vector<models::TextResult> read;
  const std::vector<models::TokenId> tokens = model.encode(text);
  try {
    read = models::read_text(model.transformer, shape, candidates, tokens, options);
  } catch (const InvalidArgument& e) {
    throw UsageError(e.what());
  }
  std::vector<models::TaskResults> asked;
  if (!tasks.empty())
    asked = models::run_tasks(model.transformer, shape, candidates,
                              {.tasks = tasks, .context = run.context, .trials = static_cast<int>(p.integer("trials")),
                               .seed = static_cast<std::uint64_t>(run.seed), .filler = text, .begin = model.begin(),
                               .encode = [&](std::string_view s) { return model.encode(s); }, .progress = progress});
  progress("");

  const models::Bootstrap bootstrap{.seed = static_cast<std::uint64_t>(run.seed)};
  Json rows = Json::array();
  for (std::size_t i = 0; i < read.size(); ++i) {
    Json row = empty_row(run, read[i].label, i == 0 ? nullptr : of_candidate[i - 1]);
    if (read[i].failure) {
      row["failure"] = *read[i].failure;
    } else {
      fill_text(row, read[i], models::summarize(read[i].scores, bootstrap), i == 0);
      if (i < asked.size() && !asked[i].failure) fill_tasks(row, asked[i], bootstrap);
    }
    rows.push_back(std::move(row));
  }
  for (const auto& [recipe, why] : refused) {
    rows.push_back(empty_row(run, recipe->canonical(), recipe));
    rows.back()["failure"] = why;
  }
  return rows;
}

}  // namespace

int run_evaluate(const Arguments& args, const Streams& io) {
  const auto parsed = parse(evaluate_usage(), args, io);
  if (!parsed) return kDone;
  const Parsed& p = *parsed;
  if (p.has("capture") == p.has("weights")) throw UsageError("give either --weights and --text, or --capture");
  if (p.has("weights") && !p.has("text")) throw UsageError("--text is missing");
  std::vector<Recipe> recipes;
  for (const std::string& m : p.list("method")) recipes.push_back(Recipe::parse(m));
  if (recipes.empty()) throw UsageError("--method is missing");
  TensorMap trained;
  if (p.has("trained")) {
    try {
      trained = io::read_float_tensors(p.text("trained"));
    } catch (const InvalidArgument& e) {
      throw IoError(e.what());
    }
  }
  Run run;
  run.seed = p.integer("seed");
  run.dtype = dtype_option(p);
  const OpenInputs inputs{.trained = trained.empty() ? nullptr : &trained, .seed = static_cast<std::uint64_t>(run.seed)};
  const Json rows = p.has("capture") ? evaluate_capture(p, recipes, inputs, run) : evaluate_weights(p, io, recipes, inputs, trained, run);
  if (p.json())
    print(io, rows);
  else
    print_rows(io, rows, run);
  return kDone;
}

}  // namespace kvatlas::cli
