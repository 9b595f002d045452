// Readers of other tools' result files. Each turns the figures it knows into rows in the tool's own words; units stand in the names.
#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <map>
#include <optional>
#include <sstream>

#include "core/errors.hpp"
#include "core/io/csv.hpp"
#include "core/io/file.hpp"
#include "reference/method.hpp"
#include "reference/registry.hpp"
#include "sweeps/imports.hpp"

namespace kvatlas::sweep::reading {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

json parse_document(const std::string& text, const fs::path& file) {
  json j = json::parse(text, nullptr, false);
  if (j.is_discarded()) throw IoError(cat(file.string(), ": not a JSON document"));
  return j;
}

std::string text_of(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return {};
  return found->is_string() ? found->get<std::string>() : found->dump();
}

std::optional<double> number_of(std::string_view text) {
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && stop == text.data() + text.size() && !text.empty() ? std::optional(value) : std::nullopt;
}

/// A number of an object, `otherwise` where it is absent or null. throws IoError for anything else
double number_at(const json& object, const char* key, double otherwise, const fs::path& file) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return otherwise;
  if (!found->is_number()) throw IoError(cat(file.string(), ": ", key, " is ", found->dump(-1, ' ', false, json::error_handler_t::replace), ", must be a number"));
  return found->get<double>();
}

/// What a table of the document says of one task, null where either is absent. throws IoError for a table that is none
json of_task(const json& document, const char* table, const std::string& task, const fs::path& file) {
  const auto found = document.find(table);
  if (found == document.end() || found->is_null()) return nullptr;
  if (!found->is_object()) throw IoError(cat(file.string(), ": ", table, " is ", found->dump(-1, ' ', false, json::error_handler_t::replace), ", must be an object of tasks"));
  const auto of = found->find(task);
  return of == found->end() ? json(nullptr) : *of;
}

/// Whether the last part of a file's name says how its weights are stored: Q4_K_M, IQ2_XS, BF16, F16, F32, in either case.
bool is_weight_format(std::string_view part) {
  std::string text(part);
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  if (text == "BF16" || text == "F16" || text == "F32") return true;
  const std::size_t digit = text.starts_with("IQ") ? 2 : text.starts_with("Q") ? 1 : text.size();
  if (digit >= text.size() || std::isdigit(static_cast<unsigned char>(text[digit])) == 0) return false;
  return text.find_first_not_of("0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZ", digit) == std::string::npos;
}

bool has_method(std::string_view slug) {
  const auto all = all_methods();
  return std::any_of(all.begin(), all.end(), [&](const Method* m) { return slug == m->slug; });
}

/// Numbers of a nested object, keys joined by dots.
void collect_numbers(const json& j, const std::string& prefix, std::vector<std::pair<std::string, double>>& out) {
  if (j.is_number()) out.emplace_back(prefix, j.get<double>());
  if (!j.is_object()) return;
  for (const auto& [key, value] : j.items()) collect_numbers(value, prefix.empty() ? key : cat(prefix, ".", key), out);
}

/// The flat `key: value` lines of a YAML file; nested ones are left out.
std::map<std::string, std::string> flat_yaml(const std::string& text) {
  std::map<std::string, std::string> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t colon = line.find(':');
    if (line.empty() || line.front() == ' ' || line.front() == '#' || colon == std::string::npos) continue;
    std::string value = line.substr(colon + 1);
    const auto not_space = [](char c) { return c != ' ' && c != '\'' && c != '"' && c != '\r'; };
    value.erase(value.begin(), std::find_if(value.begin(), value.end(), not_space));
    value.erase(std::find_if(value.rbegin(), value.rend(), not_space).base(), value.end());
    out[line.substr(0, colon)] = value == "null" ? "" : value;
  }
  return out;
}

std::vector<std::string> split(const std::string& text, const std::string& by) {
  std::vector<std::string> out;
  std::size_t at = 0;
  for (std::size_t next = 0; (next = text.find(by, at)) != std::string::npos; at = next + by.size()) out.push_back(text.substr(at, next - at));
  out.push_back(text.substr(at));
  return out;
}

/// How vLLM and SGLang spell the cache's dtype, as presets.
std::string method_of_dtype(const std::string& dtype) {
  static const std::map<std::string, std::string, std::less<>> kDtypes{
      {"auto", "full"}, {"bfloat16", "full"}, {"float16", "full"}, {"bf16", "full"}, {"fp16", "full"}, {"half", "full"},
      {"fp8", "vllm:fp8"}, {"fp8_e4m3", "vllm:fp8"}, {"fp8_e5m2", "vllm:fp8_e5m2"}, {"nvfp4", "trtllm:nvfp4"}};
  const auto found = kDtypes.find(dtype);
  return found != kDtypes.end() ? found->second : cat("vllm:", dtype);
}

}  // namespace

std::vector<Figure> read_kvpress(const std::string& text, const fs::path& file) {
  const json metrics = parse_document(text, file);
  std::map<std::string, std::string> config;
  std::error_code none;
  if (const fs::path beside = file.parent_path() / "config.yaml"; fs::exists(beside, none)) {
    const std::vector<std::byte> bytes = io::read_file(beside.string());
    config = flat_yaml(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  } else {
    // dataset__data_dir__publisher--model__press__ratio, of the folder or of the file itself; data_dir may be absent.
    const std::string name = file.stem() == "metrics" ? file.parent_path().filename().string() : file.stem().string();
    const std::vector<std::string> parts = split(name, "__");
    const auto model = std::find_if(parts.begin(), parts.end(), [](const std::string& p) { return p.find("--") != std::string::npos; });
    if (model == parts.end() || parts.end() - model < 3) throw IoError(cat(file.string(), ": no config.yaml beside it, and \"", name, "\" is no name that kvpress gives its results"));
    config["dataset"] = parts.front();
    if (model - parts.begin() > 1) config["data_dir"] = parts[1];
    config["model"] = cat(model->substr(0, model->find("--")), "/", model->substr(model->find("--") + 2));
    config["press_name"] = *(model + 1);
    config["compression_ratio"] = *(model + 2);
  }
  const std::string press = config["press_name"];
  const std::string& ratio = config["compression_ratio"];
  const std::optional<double> removed = number_of(ratio);
  Figure base{.model = config["model"], .gpu = "", .method = press, .metric = "", .value = 0, .setup = {}};
  for (const auto& [key, value] : config)
    if (!value.empty()) base.setup[key] = value;
  if (press == "no_press" || removed == 0.0) {
    base.method = "full";
  } else if (!has_method(press)) {
    base.method_why = "kvpress's press of this name is none of our methods";
  } else if (!removed || *removed < 0 || *removed >= 1) {
    base.method_why = ratio.empty() ? "the file states no compression_ratio" : cat("compression_ratio is ", ratio, ", must be a number from 0 to below 1");
  } else if (const auto context = number_of(config["data_dir"]); context && *context >= 256 && *context <= 1e9) {
    // The data set's length stands for the prompt's; kvpress keeps int(length x (1 - ratio)).
    base.method = cat(press, ":budget=", static_cast<std::int64_t>(*context * (1 - *removed) + 1e-9));
    base.setup["budget_from"] = "data_dir x (1 - compression_ratio)";
  } else {
    base.method_why = cat("compression_ratio ", ratio, " is a share of each prompt, our budget is in tokens");
  }
  std::vector<std::pair<std::string, double>> numbers;
  collect_numbers(metrics, "", numbers);
  std::vector<Figure> out;
  for (auto& [metric, value] : numbers) {
    Figure f = base;
    f.metric = metric;
    f.value = value;
    out.push_back(std::move(f));
  }
  return out;
}

std::vector<Figure> read_lm_eval(const std::string& text, const fs::path& file) {
  const json j = parse_document(text, file);
  if (!j.is_object() || !j.contains("results") || !j["results"].is_object()) throw IoError(cat(file.string(), ": results is missing, must be a results file of lm-eval"));
  const json config = j.value("config", json::object());
  Figure base{.model = text_of(j, "model_name"), .gpu = "", .method = "", .metric = "", .value = 0, .setup = {}};
  std::string arguments;
  if (const auto found = config.find("model_args"); found != config.end()) {
    if (found->is_object()) {
      for (const auto& [key, value] : found->items()) arguments += cat(arguments.empty() ? "" : ",", key, "=", value.is_string() ? value.get<std::string>() : value.dump());
    } else {
      arguments = text_of(config, "model_args");
    }
  }
  for (const std::string& argument : split(arguments, ",")) {
    const std::size_t equals = argument.find('=');
    const std::string key = argument.substr(0, equals), value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if ((key == "pretrained" || key == "model") && base.model.empty()) base.model = value;
    if (key == "kv_cache_dtype") base.method = method_of_dtype(value);
  }
  base.setup = {{"model_args", arguments}};
  std::vector<Figure> out;
  for (const auto& [task, figures] : j["results"].items()) {
    if (!figures.is_object()) continue;
    for (const auto& [name, value] : figures.items()) {
      if (!value.is_number() || name.find("_stderr") != std::string::npos) continue;
      Figure f = base;
      const std::size_t comma = name.find(',');  // "acc,none": metric, filter
      f.metric = cat(task, ".", name.substr(0, comma));
      f.value = value.get<double>();
      f.setup["task"] = task;
      if (comma != std::string::npos) f.setup["filter"] = name.substr(comma + 1);
      const std::string error = cat(name.substr(0, comma), "_stderr", comma == std::string::npos ? "" : name.substr(comma));
      if (const auto found = figures.find(error); found != figures.end() && found->is_number()) f.setup["stderr"] = *found;
      if (const json shots = of_task(j, "n-shot", task, file); !shots.is_null()) f.setup["shots"] = shots;
      if (const json samples = of_task(j, "n-samples", task, file); !samples.is_null()) {
        if (!samples.is_object()) throw IoError(cat(file.string(), ": n-samples of ", task, " is ", samples.dump(), ", must be an object with effective"));
        f.setup["samples"] = samples.value("effective", json(nullptr));
      }
      out.push_back(std::move(f));
    }
  }
  return out;
}

std::vector<Figure> read_vllm_bench(const std::string& text, const fs::path& file) {
  const json j = parse_document(text, file);
  if (!j.is_object() || !j.contains("request_throughput") || !j["request_throughput"].is_number())
    throw IoError(cat(file.string(), ": request_throughput is missing, must be what vllm bench serve --save-result writes"));
  static constexpr std::array<std::pair<const char*, const char*>, 4> kRates{{{"request_throughput", "requests_per_s"}, {"output_throughput", "tokens_per_s"},
                                                                             {"total_token_throughput", "total_tokens_per_s"}, {"request_goodput", "goodput_req_s"}}};
  Figure base{.model = text_of(j, "model_id"), .gpu = text_of(j, "gpu"), .method = "", .metric = "", .value = 0, .setup = {}};
  if (const std::string dtype = text_of(j, "kv_cache_dtype"); !dtype.empty()) base.method = method_of_dtype(dtype);  // from --metadata
  for (const char* key : {"date", "backend", "num_prompts", "request_rate", "burstiness", "max_concurrency", "completed", "duration", "tensor_parallel_size", "tp"})
    if (j.contains(key) && !j[key].is_null()) base.setup[key] = j[key];
  const double completed = number_at(j, "completed", 0, file);
  for (const auto& [key, name] : {std::pair{"total_input_tokens", "mean_prompt_tokens"}, std::pair{"total_output_tokens", "mean_output_tokens"}})
    if (completed > 0 && j.contains(key) && j[key].is_number()) base.setup[name] = j[key].get<double>() / completed;
  std::vector<Figure> out;
  const auto add = [&](const json& value, const std::string& metric) {
    if (!value.is_number()) return;
    Figure f = base;
    f.metric = metric;
    f.value = value.get<double>();
    out.push_back(std::move(f));
  };
  for (const auto& [key, metric] : kRates)
    if (j.contains(key)) add(j[key], metric);
  for (const auto& [key, value] : j.items()) {  // mean_ttft_ms, p99_tpot_ms, ...: ttft_ms.mean, tpot_ms.p99
    const std::vector<std::string> parts = split(key, "_");
    if (parts.size() != 3 || parts[2] != "ms") continue;
    for (const char* latency : {"ttft", "tpot", "itl", "e2el"})
      if (parts[1] == latency) add(value, cat(parts[1] == "e2el" ? "e2e" : parts[1], "_ms.", parts[0]));
  }
  return out;
}

std::vector<Figure> read_llama_bench(const std::string& text, const fs::path& file) {
  std::vector<json> rows;
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) throw IoError(cat(file.string(), ": empty"));
  if (text[first] == '[') {
    for (const json& row : parse_document(text, file)) rows.push_back(row);
  } else if (text[first] == '{') {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
      if (line.find_first_not_of(" \t\r") != std::string::npos) rows.push_back(parse_document(line, file));
  } else {
    std::string header = text.substr(first, text.find('\n', first) - first);
    header.erase(std::remove(header.begin(), header.end(), '\r'), header.end());
    const std::vector<std::string> names = split(header, ",");
    const std::vector<std::string_view> columns(names.begin(), names.end());
    for (const CsvRow& row : parse_csv(text, file.string(), columns)) {
      json object = json::object();
      for (std::size_t i = 0; i < names.size(); ++i) {
        const auto number = number_of(row.cells[i]);
        object[names[i]] = number ? json(*number) : json(row.cells[i]);
      }
      rows.push_back(std::move(object));
    }
  }
  std::vector<Figure> out;
  for (const json& row : rows) {
    if (!row.is_object() || !row.contains("avg_ts") || !row["avg_ts"].is_number()) throw IoError(cat(file.string(), ": avg_ts is missing, must be what llama-bench -o json, jsonl or csv writes"));
    const std::string k = text_of(row, "type_k"), v = text_of(row, "type_v");
    const auto plain = [](const std::string& type) { return type.empty() || type == "f16" || type == "bf16" || type == "f32"; };
    Figure f{.model = text_of(row, "model_type"), .gpu = text_of(row, "gpu_info"), .method = "full", .metric = "tokens_per_s", .value = row["avg_ts"].get<double>(), .setup = {}};
    if (k.empty() && v.empty()) f.method.clear();
    else if (!plain(k) && !plain(v)) f.method = cat("llamacpp_kv:k_type=", k, ",v_type=", v);
    else if (!plain(k)) f.method = cat("k=llamacpp_kv:k_type=", k, ";v=full");
    else if (!plain(v)) f.method = cat("k=full;v=llamacpp_kv:v_type=", v);
    // "llama 8B Q4_K - Medium" names an architecture and a size, not a model; the file's name often does.
    if (const std::string path = text_of(row, "model_filename"); !path.empty()) {
      std::string stem = fs::path(path).stem().string();
      f.setup["model_type"] = f.model;
      f.model = stem;
      if (const std::size_t weights = stem.find_last_of("-."); weights != std::string::npos && is_weight_format(std::string_view(stem).substr(weights + 1))) {
        f.model = stem.substr(0, weights);
        f.setup["weights"] = stem.substr(weights + 1);
      }
    }
    for (const char* key : {"n_prompt", "n_gen", "n_depth", "n_batch", "n_ubatch", "flash_attn", "n_gpu_layers", "build_commit", "backends", "stddev_ts", "model_filename"})
      if (row.contains(key) && !row[key].is_null()) f.setup[key] = row[key];
    const auto prompt = number_at(row, "n_prompt", 0, file), generated = number_at(row, "n_gen", 0, file);
    f.metric = prompt > 0 && generated > 0 ? "prompt_and_output_tokens_per_s" : prompt > 0 ? "prompt_tokens_per_s" : "tokens_per_s";
    out.push_back(std::move(f));
  }
  return out;
}

std::vector<Figure> read_aiconfigurator(const std::string& text, const fs::path& file) {
  std::string header = text.substr(0, text.find('\n'));
  header.erase(std::remove(header.begin(), header.end(), '\r'), header.end());
  const std::vector<std::string> names = split(header, ",");
  for (const char* needed : {"model", "isl", "osl", "tokens/s/gpu"})
    if (std::find(names.begin(), names.end(), needed) == names.end()) throw IoError(cat(file.string(), ": column ", needed, " is missing, must be a table of aiconfigurator"));
  const std::vector<std::string_view> columns(names.begin(), names.end());
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 8> kFigures{
      {{"seq/s", "requests_per_s"}, {"tokens/s", "tokens_per_s"}, {"tokens/s/gpu", "tokens_per_s_per_gpu"}, {"tokens/s/user", "tokens_per_s_per_user"},
       {"ttft", "ttft_ms"}, {"tpot", "tpot_ms"}, {"request_latency", "e2e_ms"}, {"memory", "memory_gib"}}};
  std::vector<Figure> out;
  for (const CsvRow& row : parse_csv(text, file.string(), columns)) {
    std::map<std::string_view, std::string> cell;
    for (std::size_t i = 0; i < names.size(); ++i) cell[names[i]] = row.cells[i];
    // Disaggregated tables state each side's system and cache with (p) and (d); the decoding side is what holds the cache.
    const auto either = [&](const char* name) {
      const std::string decoding = cat("(d)", name);
      for (const std::string_view column : {std::string_view(name), std::string_view(decoding)})
        if (const auto found = cell.find(column); found != cell.end() && !found->second.empty()) return found->second;
      return std::string();
    };
    Figure base{.model = cell["model"], .gpu = either("system"), .method = either("kvcache"), .metric = "", .value = 0, .setup = {{"line", row.line}}};
    if (!base.method.empty()) base.method = method_of_dtype(base.method);
    for (const auto& [name, value] : cell) {
      const bool figure = std::any_of(kFigures.begin(), kFigures.end(), [n = name](const auto& f) { return f.first == n; });
      if (!figure && !value.empty() && name != "model") base.setup[std::string(name)] = value;
    }
    for (const auto& [column, metric] : kFigures) {
      const auto found = cell.find(column);
      const auto value = found != cell.end() ? number_of(found->second) : std::nullopt;
      if (!value) continue;
      Figure f = base;
      f.metric = metric;
      f.value = *value;
      out.push_back(std::move(f));
    }
  }
  return out;
}

}  // namespace kvatlas::sweep::reading
