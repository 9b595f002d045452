#include "sweeps/spec.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <set>
#include <sstream>

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "sweeps/document.hpp"
#include "sweeps/settings.hpp"
#include "sweeps/values.hpp"

namespace kvatlas::sweep {

using nlohmann::json;

namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 30;
constexpr std::int64_t kMostBatch = 1'000'000;

/// Calls f; an error of ours gets the place in the document in front, its class stays.
template <class F>
auto placed(const Node& node, F&& f) {
  try {
    return f();
  } catch (const IoError& e) {
    throw IoError(cat(node.path(), ": ", e.what()));
  } catch (const Error& e) {
    node.fail(e.what());
  }
}

std::vector<Node> required_list(const Node& doc, const char* key, std::string_view what) {
  if (!doc.has(key)) doc.fail(cat("\"", key, "\" is missing, must be ", what));
  const Node node = doc.at(key);
  if (node.value().empty()) node.refuse(what);
  return node.items();
}

std::vector<models::Model> read_models(const Node& doc, const std::filesystem::path& folder) {
  std::vector<models::Model> out;
  for (const Node& item : required_list(doc, "models", "an array of model slugs or paths to a config.json")) {
    const std::string name = item.text();
    const std::filesystem::path beside = folder / name;
    const bool file = name.ends_with(".json") && std::filesystem::exists(beside);
    out.push_back(placed(item, [&] { return models::load_model(file ? beside.string() : name); }));
  }
  return out;
}

void add_recipes(const Node& item, const std::string& pattern, Spec& spec, std::set<std::string>& seen) {
  placed(item, [&] {
    for (const std::string& text : expand_recipe(pattern)) {
      Recipe recipe = Recipe::parse(text);
      if (seen.insert(recipe.canonical()).second) spec.recipes.push_back(std::move(recipe));
    }
  });
}

void read_methods(const Node& doc, Spec& spec) {
  std::set<std::string> seen;
  for (const Node& item : required_list(doc, "methods", "\"all\" or an array of recipes like \"kivi:bits=2|4\"")) {
    const std::string text = item.text();
    if (text != "all") {
      add_recipes(item, text, spec, seen);
      continue;
    }
    for (Recipe& r : default_recipes())
      if (seen.insert(r.canonical()).second) spec.recipes.push_back(std::move(r));
  }
  if (!doc.has("settings")) return;
  for (const Node& item : doc.at("settings").items()) {
    const std::string text = item.text();
    if (text != "several") {
      add_recipes(item, text, spec, seen);
      continue;
    }
    Settings several = several_settings();
    for (Recipe& r : several.recipes)
      if (seen.insert(r.canonical()).second) spec.recipes.push_back(std::move(r));
    spec.left_out = std::move(several.left_out);
  }
}

Batches read_batches(const Node& doc) {
  Batches b{.list = {}, .to_memory_limit = true};
  if (!doc.has("batches")) return b;
  const Node node = doc.at("batches");
  if (node.value() == "to_memory_limit") return b;
  if (node.value().is_object()) {
    constexpr std::string_view keys[] = {"to_memory_limit", "per_doubling"};
    node.require_keys(keys);
    if (!node.has("to_memory_limit") || node.value()["to_memory_limit"] != true) node.refuse("an object with \"to_memory_limit\": true");
    if (node.has("per_doubling")) b.per_doubling = static_cast<int>(node.at("per_doubling").size(1, 64));
    return b;
  }
  b.to_memory_limit = false;
  for (const std::int64_t n : node.sizes(1)) {
    if (n > kMostBatch) node.refuse(cat("batch sizes from 1 to ", kMostBatch));
    b.list.push_back(static_cast<int>(n));
  }
  return b;
}

sim::Slo read_slo(const Node& node) {
  if (node.value().is_string()) return placed(node, [&] { return parse_slo(node.text()); });
  constexpr std::string_view keys[] = {"ttft_ms", "tpot_ms", "ttft_p99_ms", "tpot_p99_ms"};
  node.require_keys(keys);
  sim::Slo slo;
  for (const char* key : {"ttft_ms", "ttft_p99_ms"})
    if (node.has(key)) slo.ttft_s = node.at(key).number(1e-3, 1e9) / 1e3;
  for (const char* key : {"tpot_ms", "tpot_p99_ms"})
    if (node.has(key)) slo.tpot_s = node.at(key).number(1e-3, 1e9) / 1e3;
  return slo;
}

void read_workloads(const Node& doc, Spec& spec) {
  if (!doc.has("workloads")) return;
  constexpr std::string_view keys[] = {"prompt", "output", "prefix_hit", "turns", "rate", "concurrency", "slo"};
  for (const Node& item : doc.at("workloads").items()) {
    item.require_keys(keys);
    for (const char* key : {"prompt", "output"})
      if (!item.has(key)) item.fail(cat("\"", key, "\" is missing, must be tokens"));
    if (item.has("rate") && item.has("concurrency")) item.fail("has rate and concurrency, must have one of them or none");
    sim::Workload w;
    if (item.has("prefix_hit")) w.prefix_hit = item.at("prefix_hit").number(0, 1);
    if (item.has("turns")) w.turns = static_cast<int>(item.at("turns").size(1, 10'000));
    if (item.has("rate")) w.rate = item.at("rate").number(1e-9, 1e9);
    if (item.has("slo")) w.slo = read_slo(item.at("slo"));
    std::vector<std::int64_t> concurrencies{0};
    if (item.has("concurrency")) concurrencies = item.at("concurrency").sizes(1);
    for (const std::int64_t prompt : item.at("prompt").sizes(1))
      for (const std::int64_t output : item.at("output").sizes(1))
        for (const std::int64_t c : concurrencies) {
          if (prompt > kMostTokens || output > kMostTokens) item.fail(cat("prompt and output must be at most ", kMostTokens, " tokens"));
          if (c > kMostBatch) item.at("concurrency").refuse(cat("from 1 to ", kMostBatch));
          w.prompt = Tokens(prompt);
          w.output = Tokens(output);
          if (c > 0) w.concurrency = static_cast<int>(c);
          spec.workloads.push_back(w);
        }
  }
}

void read_deployments(const Node& doc, Spec& spec) {
  if (doc.has("plans"))
    for (const Node& item : doc.at("plans").items()) {
      if (item.value() != "ideal" && item.value() != "released") item.refuse("ideal or released");
      const bool released = item.value() == "released";
      if (std::find(spec.released.begin(), spec.released.end(), released) == spec.released.end()) spec.released.push_back(released);
    }
  if (doc.has("weights"))
    for (const Node& item : doc.at("weights").items()) {
      const sim::WeightFormat f = placed(item, [&] { return sim::parse_weight_format(item.text()); });
      if (std::find(spec.weights.begin(), spec.weights.end(), f) == spec.weights.end()) spec.weights.push_back(f);
    }
  if (doc.has("engines"))
    for (const Node& item : doc.at("engines").items()) {
      const sim::Engine* e = placed(item, [&] { return &sim::find_engine(item.text()); });
      if (std::find(spec.engines.begin(), spec.engines.end(), e) == spec.engines.end()) spec.engines.push_back(e);
    }
  if (doc.has("tp"))
    for (const std::int64_t n : doc.at("tp").sizes(1)) {
      if (n > 1024) doc.at("tp").refuse("from 1 to 1024");
      spec.tp.push_back(static_cast<int>(n));
    }
  if (spec.released.empty()) spec.released = {false};
  if (spec.weights.empty()) spec.weights = {sim::WeightFormat::bf16};
  if (spec.engines.empty()) spec.engines = {&sim::default_engine()};
  if (spec.tp.empty()) spec.tp = {1};
  if (doc.has("gpu_memory_utilization")) spec.gpu_memory_utilization = doc.at("gpu_memory_utilization").number(0.05, 1);
  if (doc.has("chunk")) spec.chunk = Tokens(doc.at("chunk").size(1, kMostTokens));
}

}  // namespace

std::vector<int> batch_series(int per_doubling, std::int64_t limit) {
  std::vector<int> out;
  limit = std::min(limit, kMostBatch);
  for (std::int64_t octave = 1; octave <= limit; octave *= 2)
    for (int j = 0; j < per_doubling; ++j) {
      const std::int64_t n = octave + octave * j / per_doubling;
      if (n <= limit && (out.empty() || n > out.back())) out.push_back(static_cast<int>(n));
    }
  if (!out.empty() && out.back() != limit) out.push_back(static_cast<int>(limit));
  return out;
}

Spec parse_spec(std::string_view text, std::string_view origin, const std::filesystem::path& folder) {
  const json document = parse_document(text, origin);
  const Node doc(document, std::string(origin), true);
  constexpr std::string_view keys[] = {"name", "comment", "models", "gpus", "methods", "settings", "plans", "contexts", "batches",
                                       "weights", "engines", "tp", "gpu_memory_utilization", "chunk", "workloads"};
  doc.require_keys(keys);
  Spec spec;
  if (doc.has("name")) spec.name = doc.at("name").text();
  spec.models = read_models(doc, folder);
  for (const Node& item : required_list(doc, "gpus", "an array of GPU slugs"))
    spec.gpus.push_back(placed(item, [&] { return sim::parse_gpu(item.text()); }));
  read_methods(doc, spec);
  read_deployments(doc, spec);
  read_workloads(doc, spec);
  if (doc.has("contexts"))
    for (const std::int64_t n : doc.at("contexts").sizes(1)) {
      if (n > kMostTokens) doc.at("contexts").refuse(cat("contexts from 1 to ", kMostTokens, " tokens"));
      spec.contexts.emplace_back(n);
    }
  spec.batches = read_batches(doc);
  if (spec.contexts.empty() && spec.workloads.empty()) doc.fail("has neither \"contexts\" nor \"workloads\", must have one of them");
  if (spec.contexts.empty() && doc.has("batches")) doc.fail("has \"batches\" without \"contexts\"");
  spec.text = document.dump();
  spec.hash = murmur3(spec.text);
  return spec;
}

Spec load_spec(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) throw IoError(cat(path.string(), ": the spec cannot be read, must be a JSON file"));
  return parse_spec(text.str(), path.filename().string(), path.parent_path());
}

sim::Slo parse_slo(std::string_view text) {
  constexpr std::string_view names[] = {"ttft_ms", "tpot_ms", "ttft_p99_ms", "tpot_p99_ms"};
  sim::Slo slo;
  while (true) {
    const std::size_t end = std::min(text.find(','), text.size());
    const std::string_view part = text.substr(0, end);
    const std::size_t equals = std::min(part.find('='), part.size());
    const std::string_view name = part.substr(0, equals);
    if (std::find(std::begin(names), std::end(names), name) == std::end(names)) throw InvalidArgument(cat("slo: ", unknown_name("limit", name, names)));
    const std::string_view value = part.substr(std::min(equals + 1, part.size()));
    double ms = 0;
    const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), ms);
    if (value.empty() || error != std::errc{} || stop != value.data() + value.size() || !(ms > 0 && ms <= 1e9))
      throw InvalidArgument(cat("slo: ", name, " is \"", value, "\", must be milliseconds above 0"));
    (name.starts_with("ttft") ? slo.ttft_s : slo.tpot_s) = ms / 1e3;
    if (end == text.size()) return slo;
    text.remove_prefix(end + 1);
  }
}

json to_json(const sim::Workload& w) {
  json slo = json::object();
  if (w.slo.ttft_s) slo["ttft_ms"] = *w.slo.ttft_s * 1e3;
  if (w.slo.tpot_s) slo["tpot_ms"] = *w.slo.tpot_s * 1e3;
  return {{"prompt", w.prompt.value},   {"output", w.output.value},
          {"prefix_hit", w.prefix_hit}, {"turns", w.turns},
          {"rate", w.rate ? json(*w.rate) : json(nullptr)},
          {"concurrency", w.concurrency ? json(*w.concurrency) : json(nullptr)},
          {"slo", slo}};
}

}  // namespace kvatlas::sweep
