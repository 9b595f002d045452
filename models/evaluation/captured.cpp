#include "models/evaluation/captured.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <set>

#include "core/errors.hpp"
#include "core/io/safetensors.hpp"
#include "models/evaluation/session.hpp"
#include "models/files/printable.hpp"

namespace kvatlas::models {

namespace {

NamedTensor tensor_of(const View<const float>& v) {
  NamedTensor t;
  for (int i = 0; i < v.rank(); ++i) t.dims.push_back(v.dim(i));
  for (std::int64_t h = 0; h < v.dim(0); ++h) {
    if (v.rank() == 2) t.values.insert(t.values.end(), v.row(h).begin(), v.row(h).end());
    for (std::int64_t i = 0; v.rank() == 3 && i < v.dim(1); ++i) t.values.insert(t.values.end(), v.row(h, i).begin(), v.row(h, i).end());
  }
  return t;
}

View<const float> view_of(const NamedTensor& t) { return {t.values.data(), {t.dims[0], t.dims[1], t.dims[2]}}; }

double number_in(const io::SafeTensors& file, const char* key, double absent, const std::string& where) {
  const auto at = file.metadata.find(key);
  if (at == file.metadata.end()) return absent;
  double value = 0;
  const char* end = at->second.data() + at->second.size();
  const auto [stop, error] = std::from_chars(at->second.data(), end, value);
  if (error != std::errc() || stop != end || !std::isfinite(value)) throw IoError(cat(where, ": metadata ", key, " is \"", at->second, "\", must be a number"));
  return value;
}

/// Methods that keep or study keys before RoPE, or turn kept keys to other positions: on keys that are rotated already, and whose
/// rotation is not known, they would compute something else without a word.
struct NeedsRotation {
  std::string_view slug, param;  // no param: always
  int fine = 0;                  // the value of param at which the method takes keys as they come
};
constexpr NeedsRotation kNeedRotation[]{{"commvq", "", 0}, {"double_sparse", "statistic", 2}, {"finch", "rerotate", 0}, {"fireq", "", 0}, {"freqkv", "", 0},
                                        {"key_rerotation", "", 0}, {"kvquant", "", 0}, {"rotatekv", "", 0}, {"streaming_llm", "positions", 1}, {"xkv", "", 0}};

void refuse_lost_rotation(const Recipe& recipe) {
  for (const Rule& rule : recipe.rules()) {
    const Method& m = *rule.key.method;
    for (const NeedsRotation& n : kNeedRotation) {
      if (n.slug != m.slug) continue;
      const auto at = std::ranges::find_if(m.params, [&](const ParamSpec& s) { return n.param == s.name; });
      if (at == m.params.end()) throw Unsupported(cat(m.slug, " works on keys before RoPE, captured keys are rotated already; give it --weights"));
      const auto value = static_cast<int>(rule.key.row[static_cast<std::size_t>(at - m.params.begin())]);
      if (value != n.fine)
        throw Unsupported(cat(m.slug, " rotates keys itself, captured keys are rotated already; set ", n.param, "=", at->choices.empty() ? cat(n.fine) : std::string(at->choices[static_cast<std::size_t>(n.fine)]), " or give it --weights"));
    }
  }
}

/// A file's q, k, v, checked against each other.
TensorMap rows_of(const io::SafeTensors& file, const std::string& where) {
  TensorMap rows;
  for (const char* name : {"q", "k", "v"}) {
    try {
      rows[name] = io::to_floats(file.at(name), name);
    } catch (const InvalidArgument& e) {
      throw IoError(cat(where, ": ", e.what()));
    }
    if (rows[name].dims.size() != 3 || rows[name].values.empty()) throw IoError(cat(where, ": ", name, " must be [heads, tokens, dim]"));
  }
  const auto& q = rows["q"].dims;
  const auto& k = rows["k"].dims;
  const auto& v = rows["v"].dims;
  if (q[1] != k[1] || v[1] != k[1] || q[2] != k[2] || v[0] != k[0] || q[0] % k[0] != 0)
    throw IoError(cat(where, ": q, k and v must have equally many tokens, q and k one dim, q heads a multiple of kv heads"));
  return rows;
}

}  // namespace

std::vector<std::string> capture(const Transformer& t, const CacheShape& shape, std::span<const TokenId> tokens,
                                 const std::filesystem::path& folder, const CaptureOptions& options) {
  if (tokens.empty()) throw InvalidArgument("the text has no tokens");
  for (const int l : options.layers)
    if (l < 0 || l >= t.layers()) throw InvalidArgument(cat("layer is ", l, ", must be below ", t.layers()));
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) throw IoError(cat(folder.string(), " cannot be made: ", failed.message()));
  std::vector<std::string> files;
  PlainAttention plain(shape);
  ObservedAttention observed(shape, plain, [&](const Observation& o) {
    if (!options.layers.empty() && std::ranges::find(options.layers, o.layer) == options.layers.end()) return;
    const LayerClass& c = shape.class_of(o.layer);
    io::SafeTensors file;
    file.metadata.insert(options.metadata.begin(), options.metadata.end());
    file.metadata["rope"] = options.before_rope ? "before" : "after";
    file.metadata["layer"] = cat(o.layer);
    if (c.window.value > 0) file.metadata["window"] = cat(c.window.value);
    if (c.score_scale > 0) file.metadata["score_scale"] = cat(c.score_scale);
    const auto put = [&](const char* name, const View<const float>& v) { file.tensors[name] = io::raw_f32(tensor_of(v), name); };
    put("q", options.before_rope ? o.q_before : o.q);
    put("k", options.before_rope ? o.k_before : o.k);
    put("v", o.v);
    if (options.outputs) put("out", o.out);
    if (options.mass_queries > 0) {
      const Array mass = attention_mass(c, o.q, o.k, options.mass_queries);
      put("mass", mass.view());
    }
    files.push_back(cat("layer", o.layer, ".safetensors"));
    io::write_safetensors((folder / files.back()).string(), file);
  });
  const Segment segment{.attention = &observed, .tokens = static_cast<std::int64_t>(tokens.size()), .first_position = 0};
  t.forward(tokens, {&segment, 1});
  return files;
}

CapturedSet read_captures(const std::filesystem::path& folder, Dtype dtype) {
  std::vector<std::filesystem::path> paths;
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(folder, failed))
    if (entry.path().extension() == ".safetensors") paths.push_back(entry.path());
  if (failed || paths.empty()) throw IoError(cat(folder.string(), " holds no .safetensors files, must be a folder of captured layers"));
  std::ranges::sort(paths);
  CapturedSet set{.model = folder.filename().string(), .prompts = {}};
  std::map<std::string, CapturedPrompt> prompts;
  std::set<std::string> texts;
  for (const std::filesystem::path& path : paths) {
    const io::SafeTensors file = io::read_safetensors(path.string());
    const std::string where = path.string();
    const auto rope = file.metadata.find("rope");
    if (rope == file.metadata.end()) throw IoError(cat(where, ": metadata rope is missing, must be after: whether keys are rotated cannot be seen"));
    if (rope->second != "after") throw IoError(cat(where, ": metadata rope is ", printable(rope->second), ", must be after: without the model its rotation is not known"));
    if (const auto model = file.metadata.find("model"); model != file.metadata.end()) set.model = model->second;
    if (const auto hash = file.metadata.find("text_hash"); hash != file.metadata.end()) texts.insert(hash->second);
    const auto named = file.metadata.find("prompt");
    CapturedPrompt& prompt = prompts[named == file.metadata.end() ? "" : named->second];
    const double index = number_in(file, "layer", static_cast<double>(prompt.layers.size()), where);
    if (index < 0 || index > 4095 || index != std::floor(index)) throw IoError(cat(where, ": metadata layer is ", index, ", must be 0 to 4095"));
    const int layer = static_cast<int>(index);
    if (prompt.layers.contains(layer)) throw IoError(cat(where, ": layer ", layer, " is there twice; metadata prompt tells prompts apart"));
    TensorMap rows = rows_of(file, where);
    const NamedTensor &q = rows.at("q"), &k = rows.at("k"), &v = rows.at("v");
    if (prompt.tokens != 0 && prompt.tokens != k.dims[1]) throw IoError(cat(where, ": k has ", k.dims[1], " tokens, must have ", prompt.tokens, " as the prompt's other layers"));
    prompt.tokens = k.dims[1];
    const double window = number_in(file, "window", 0, where);
    if (window < 0 || window > 1 << 28) throw IoError(cat(where, ": metadata window is ", window, ", must be 0 to ", 1 << 28));
    LayerClass c{.q_heads = static_cast<int>(q.dims[0]), .kv_heads = static_cast<int>(k.dims[0]), .k_dim = static_cast<int>(k.dims[2]),
                 .v_dim = static_cast<int>(v.dims[2]), .window = Tokens(static_cast<std::int64_t>(window)),
                 .score_scale = number_in(file, "score_scale", 0, where)};
    const auto same = std::ranges::find_if(prompt.shape.classes, [&](LayerClass other) {
      other.layers.clear();
      return other == c;
    });
    if (same != prompt.shape.classes.end()) {
      same->layers.push_back(layer);
      std::ranges::sort(same->layers);
    } else {
      c.layers = {layer};
      prompt.shape.classes.push_back(std::move(c));
    }
    prompt.layers[layer] = std::move(rows);
  }
  for (auto& [name, prompt] : prompts) {
    prompt.name = name;
    prompt.shape.dtype = dtype;
    if (prompt.tokens < 2) throw IoError(cat(folder.string(), " holds a prompt of ", prompt.tokens, " token, must have at least 2"));
    set.prompts.push_back(std::move(prompt));
  }
  if (texts.size() == 1) set.text_hash = *texts.begin();
  return set;
}

CapturedScore score_captured(const CapturedSet& set, const Recipe& recipe, const OpenInputs& inputs, std::int64_t probes) {
  refuse_lost_rotation(recipe);
  CapturedScore score;
  for (const CapturedPrompt& prompt : set.prompts) {
    const Candidate candidate = candidate_of(recipe, prompt.shape, inputs);
    const auto cache = candidate.open();
    score.label = candidate.label;
    PlainAttention plain(prompt.shape);
    const std::int64_t decoded = std::min(probes, prompt.tokens - 1), compressed = prompt.tokens - decoded;
    std::map<int, std::pair<double, double>> sums;  // by layer: squares of the difference and of the exact outputs
    const auto run = [&](std::int64_t first, std::int64_t n, bool compare) {
      std::vector<std::int64_t> positions(static_cast<std::size_t>(n));
      std::iota(positions.begin(), positions.end(), first);
      for (const auto& [layer, rows] : prompt.layers) {
        const LayerClass& c = prompt.shape.class_of(layer);
        const StepInput step{.q = view_of(rows.at("q")).slice(1, first, n), .k = view_of(rows.at("k")).slice(1, first, n),
                             .v = view_of(rows.at("v")).slice(1, first, n), .positions = View<const std::int64_t>(positions.data(), {n})};
        Array exact({c.q_heads, n, c.v_dim}), out({c.q_heads, n, c.v_dim});
        plain.forward(layer, step, exact.view());
        cache->forward(layer, step, out.view());
        if (!compare) continue;
        auto& [difference, norm] = sums[layer];
        for (std::size_t i = 0; i < out.values().size(); ++i) {
          const double e = static_cast<double>(exact.values()[i]), d = static_cast<double>(out.values()[i]) - e;
          difference += d * d;
          norm += e * e;
        }
      }
    };
    run(0, compressed, false);
    cache->end_prefill();
    score.stored += count_ledger(cache->buffers()).total();
    score.dense += dense_bytes(prompt.shape, Tokens(compressed));
    for (std::int64_t i = compressed; i < prompt.tokens; ++i) run(i, 1, true);
    for (const auto& [layer, s] : sums) {
      score.attention_error.push_back(s.second > 0 ? std::sqrt(s.first / s.second) : 0.0);
      score.layers.push_back(layer);
    }
    score.probes += decoded;
  }
  return score;
}

}  // namespace kvatlas::models
