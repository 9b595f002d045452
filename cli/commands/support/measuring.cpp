#include "cli/commands/support/measuring.hpp"

#include <algorithm>
#include <utility>

#include "cli/commands/support/evaluation.hpp"
#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "models/evaluation/tasks.hpp"

namespace kvatlas::cli {

namespace {

/// throws Unsupported for a method that needs another model beside the one that is read, or one of another kind
void require_one_causal_model(const Recipe& recipe) {
  const auto needs = [](const Method& m, Need need) { return std::ranges::find(m.needs, need) != m.needs.end(); };
  for (const Rule& rule : recipe.rules()) {
    const Method& m = *rule.key.method;
    if (needs(m, Need::draft_model)) throw Unsupported(cat(m.slug, " needs a draft model, and an evaluation runs the target alone"));
    if (needs(m, Need::marked_spans)) throw Unsupported(cat(m.slug, " needs a model that marks which spans are over, and an evaluation reads plain text"));
    if (needs(m, Need::diffusion_model)) throw Unsupported(cat(m.slug, " needs a diffusion model, and an evaluation reads the text token by token"));
  }
}

}  // namespace

Reading load_reading(const Parsed& p, const Streams& io, const char* command) {
  Reading r{.model = load_model_weights(p, io, command), .text = io::read_text(p.text("text")), .tokens = {}};
  r.tokens = r.model.encode(r.text);
  return r;
}

Json row_of(const EvaluationRun& run, const Recipe& asked, const std::string& ran) {
  const bool same = ran.empty() || ran == asked.canonical();
  Json row = empty_row(run, same ? asked : Recipe::parse(ran));
  row["asked"] = asked.canonical();
  if (!same) add_note(row, cat("asked: ", asked.canonical(), "; layers with a window stay plain, the method refuses them"));
  return row;
}

Json measure(const Reading& reading, const std::vector<Recipe>& recipes, TensorMap& trained, const EvaluationRun& run, const std::vector<std::string>& tasks,
             const std::function<void(const std::string&)>& progress) {
  const models::LoadedModel& model = reading.model;
  CacheShape shape = model.transformer.model().cache;
  shape.dtype = run.dtype;

  // Methods that look at W_o find it without a file: the weights are here.
  for (const Recipe& recipe : recipes)
    for (const Rule& rule : recipe.rules())
      if (std::ranges::find(rule.key.method->needs, Need::output_weights) != rule.key.method->needs.end() && !trained.contains("layer0.w_o")) {
        TensorMap weights = model.transformer.output_weights();
        trained.merge(weights);
      }
  const OpenInputs inputs{.trained = trained.empty() ? nullptr : &trained, .seed = static_cast<std::uint64_t>(run.seed)};

  std::vector<models::Candidate> candidates;
  std::vector<const Recipe*> of_candidate;
  std::vector<std::pair<const Recipe*, std::string>> refused;
  for (const Recipe& recipe : recipes) {
    if (recipe.canonical() == "full") continue;
    try {
      require_one_causal_model(recipe);
      candidates.push_back(models::candidate_of(recipe, shape, inputs));
      of_candidate.push_back(&recipe);
    } catch (const Error& e) {
      refused.emplace_back(&recipe, e.what());
    }
  }
  const models::TextOptions options{.protocol = run.protocol == "a" ? models::Protocol::a : models::Protocol::b, .context = run.context, .scored = run.scored, .windows = run.windows,
                                    .chunk = run.chunk, .begin = model.begin(), .progress = progress};
  std::vector<models::TextResult> read;
  try {
    read = models::read_text(model.transformer, shape, candidates, reading.tokens, options);
  } catch (const InvalidArgument& e) {
    throw UsageError(e.what());
  }
  std::vector<models::TaskResults> asked;
  if (!tasks.empty())
    asked = models::run_tasks(model.transformer, shape, candidates,
                              {.tasks = tasks, .context = run.context, .trials = static_cast<int>(run.trials), .seed = static_cast<std::uint64_t>(run.seed), .filler = reading.text,
                               .begin = model.begin(), .encode = [&](std::string_view s) { return model.encode(s); }, .progress = progress});
  progress("");

  const models::Bootstrap bootstrap{.seed = static_cast<std::uint64_t>(run.seed), .window = static_cast<std::int64_t>(read[0].scores.size()) / options.windows};
  Json rows = Json::array();
  for (std::size_t i = 0; i < read.size(); ++i) {
    const Recipe plain = Recipe::parse("full");
    const Recipe& recipe = i == 0 ? plain : *of_candidate[i - 1];
    Json row = row_of(run, recipe, i == 0 ? "full" : read[i].label);
    if (read[i].failure) {
      row["failure"] = *read[i].failure;
    } else {
      fill_text(row, run, read[i], models::summarize(read[i].scores, bootstrap), i == 0);
      if (i < asked.size() && !asked[i].failure) fill_tasks(row, asked[i]);
      if (i < asked.size() && asked[i].failure) add_note(row, cat("tasks: ", *asked[i].failure));
    }
    rows.push_back(std::move(row));
  }
  for (const auto& [recipe, why] : refused) {
    rows.push_back(row_of(run, *recipe, ""));
    rows.back()["failure"] = why;
  }
  return rows;
}

}  // namespace kvatlas::cli
