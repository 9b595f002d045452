#include "answers/vectors.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/errors.hpp"
#include "reference/compose/scenario.hpp"
#include "reference/compose/trained_inputs.hpp"
#include "reference/registry.hpp"

namespace kvatlas::answers {

namespace {

using scenarios::Scenario;

constexpr std::int64_t kRowBytes = 2048;    // of one token, all layers, inputs and output
constexpr std::int64_t kCaseBytes = 12288;  // of all tokens, about
constexpr std::int64_t kStateBytes = 20480;
constexpr std::int64_t kDecode = 3;
constexpr int kAttempts = 400;

View<const float> layer_of(const NamedTensor& t, int layer, std::int64_t first, std::int64_t n) {
  return View<const float>(t.values.data(), {t.dims[0], t.dims[1], t.dims[2], t.dims[3]})[layer].slice(1, first, n);
}

View<float> layer_of(NamedTensor& t, int layer, std::int64_t first, std::int64_t n) {
  return View<float>(t.values.data(), {t.dims[0], t.dims[1], t.dims[2], t.dims[3]})[layer].slice(1, first, n);
}

NamedTensor zeros(std::vector<std::int64_t> dims) {
  std::int64_t n = 1;
  for (const std::int64_t d : dims) n *= d;
  return {.dims = std::move(dims), .values = std::vector<float>(static_cast<std::size_t>(n))};
}

/// The step of tokens [first, first + n) of one layer, at positions from `position` on.
struct Step {
  std::vector<std::int64_t> positions;
  StepInput input;
};
Step step_of(const VectorCase& c, int layer, std::int64_t first, std::int64_t n, std::int64_t position) {
  Step s;
  for (std::int64_t i = 0; i < n; ++i) s.positions.push_back(position + i);
  s.input = {.q = layer_of(c.inputs.at("q"), layer, first, n), .k = layer_of(c.inputs.at("k"), layer, first, n), .v = layer_of(c.inputs.at("v"), layer, first, n),
             .positions = {s.positions.data(), {n}}};
  return s;
}

VectorStage stage(std::string name, const std::vector<NamedBuffer>& buffers) {
  VectorStage s{.name = std::move(name), .buffers = {}};
  for (const NamedBuffer& b : buffers)
    s.buffers.push_back({.name = b.name, .component = std::string(b.component), .side = name_of(b.side), .scope = name_of(b.scope), .bytes = b.bytes});
  return s;
}

/// Copies a dense [heads, n, dim] result to its place in `out`.
void place(const Array& from, NamedTensor& out, int layer, std::int64_t first) {
  const View<const float> source = from.view();
  const View<float> target = layer_of(out, layer, first, source.dim(1));
  for (std::int64_t h = 0; h < source.dim(0); ++h)
    for (std::int64_t i = 0; i < source.dim(1); ++i) std::ranges::copy(source.row(h, i), target.row(h, i).begin());
}

void run_cache(VectorCase& c) {
  const LayerClass& layer_class = c.shape.classes.front();
  const std::int64_t tokens = c.prompt + c.decode;
  const auto cache = c.choice.method->open(c.choice.row, c.shape, {.trained = c.trained.empty() ? nullptr : &c.trained});
  NamedTensor out = zeros({layer_class.count(), layer_class.q_heads, tokens, layer_class.v_dim});
  const auto feed = [&](std::int64_t first, std::int64_t n) {
    for (int layer = 0; layer < layer_class.count(); ++layer) {
      const Step step = step_of(c, layer, first, n, first);
      Array result({layer_class.q_heads, n, layer_class.v_dim});
      cache->forward(layer, step.input, result.view());
      place(result, out, layer, first);
    }
  };
  for (std::int64_t done = 0; done < c.prompt; done += c.chunk) feed(done, std::min(c.chunk, c.prompt - done));
  cache->end_prefill();
  c.stages = {stage("prompt", cache->buffers())};
  for (std::int64_t i = 0; i < c.decode; ++i) feed(c.prompt + i, 1);
  c.stages.push_back(stage("end", cache->buffers()));
  c.outputs = {{"out", std::move(out)}};
}

/// Sequence 0 takes the prompt, sequence 1 forks from it, then both go on, token by token and together.
void run_group(VectorCase& c) {
  const LayerClass& layer_class = c.shape.classes.front();
  const auto group = c.choice.method->open_group(c.choice.row, c.shape);
  NamedTensor out = zeros({layer_class.count(), layer_class.q_heads, c.prompt + 2 * c.decode, layer_class.v_dim});
  const auto feed = [&](const std::vector<int>& sequences, const std::vector<std::int64_t>& first, std::int64_t n, std::int64_t position) {
    for (int layer = 0; layer < layer_class.count(); ++layer) {
      std::vector<Step> steps;
      std::vector<StepInput> inputs;
      std::vector<Array> results;
      std::vector<View<float>> views;
      for (const std::int64_t f : first) {
        steps.push_back(step_of(c, layer, f, n, position));
        results.emplace_back(Array({layer_class.q_heads, n, layer_class.v_dim}));
      }
      for (std::size_t i = 0; i < steps.size(); ++i) {
        inputs.push_back(steps[i].input);
        views.push_back(results[i].view());
      }
      group->forward(layer, sequences, inputs, views);
      for (std::size_t i = 0; i < results.size(); ++i) place(results[i], out, layer, first[i]);
    }
  };
  const int parent = group->fork(-1);
  feed({parent}, {0}, c.prompt, 0);
  const int child = group->fork(parent);
  c.stages = {stage("prompt", group->buffers())};
  for (std::int64_t i = 0; i < c.decode; ++i) feed({parent, child}, {c.prompt + i, c.prompt + c.decode + i}, 1, c.prompt + i);
  c.stages.push_back(stage("end", group->buffers()));
  c.outputs = {{"out", std::move(out)}};
}

void run(VectorCase& c) {
  if (c.kind == VectorKind::cache) return run_cache(c);
  if (c.kind == VectorKind::group) return run_group(c);
  c.outputs = c.choice.method->convert(c.choice.row, c.shape, c.inputs).weights;
  c.stages.clear();
}

/// Inputs of `tokens` tokens, one channel an outlier, some values subnormal (reference/compose/scenario.cpp).
void fill_inputs(VectorCase& c, std::int64_t tokens, std::uint64_t seed) {
  const LayerClass& lc = c.shape.classes.front();
  NamedTensor q = zeros({lc.count(), lc.q_heads, tokens, lc.k_dim}), k = zeros({lc.count(), lc.kv_heads, tokens, lc.k_dim}),
              v = zeros({lc.count(), lc.kv_heads, tokens, lc.v_dim});
  for (int layer = 0; layer < lc.count(); ++layer) {
    const scenarios::Inputs in = scenarios::inputs_for(c.shape, layer, 0, tokens, seed);
    place(in.q, q, layer, 0);
    place(in.k, k, layer, 0);
    place(in.v, v, layer, 0);
  }
  c.inputs = {{"q", std::move(q)}, {"k", std::move(k)}, {"v", std::move(v)}};
}

std::int64_t row_bytes(const CacheShape& shape) {
  const LayerClass& c = shape.classes.front();
  return std::int64_t{4} * c.count() * (c.q_heads * (c.k_dim + c.v_dim) + c.kv_heads * (c.k_dim + c.v_dim));
}

std::int64_t state_bytes(const VectorCase& c) {
  std::int64_t n = 0;
  for (const VectorStage& s : c.stages)
    for (const StoredBuffer& b : s.buffers) n += static_cast<std::int64_t>(b.bytes.size());
  return n;
}

bool same_bits(const NamedTensor& a, const NamedTensor& b) {
  return a.dims == b.dims && a.values.size() == b.values.size() && (a.values.empty() || std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(float)) == 0);
}

/// What a plain cache answers to the same inputs: a case of it would not test the method.
bool like_full(const VectorCase& c) {
  VectorCase plain = c;
  plain.choice = parse_choice("full");
  plain.trained.clear();
  run_cache(plain);
  return same_bits(plain.outputs.at("out"), c.outputs.at("out"));
}

VectorCase case_of(const Scenario& s, std::string name, bool chunked, int length) {
  VectorCase c{.name = std::move(name), .kind = VectorKind::cache, .choice = {s.method, s.row}, .shape = s.shape, .inputs = {}, .trained = {}, .outputs = {}, .stages = {}};
  const std::int64_t tokens = std::clamp<std::int64_t>(length * kCaseBytes / row_bytes(s.shape), 12, length * 48);
  c.decode = kDecode;
  c.prompt = tokens - kDecode;
  c.chunk = chunked ? c.prompt / 2 + 1 : c.prompt;
  c.trained = scenarios::trained_inputs(*s.method, s.row, s.shape, c.prompt, s.seed);
  fill_inputs(c, tokens, s.seed);
  run(c);
  return c;
}

std::vector<VectorCase> cache_cases(const Method& method, int count) {
  std::vector<VectorCase> out;
  std::optional<VectorCase> plain;  // the first one when nothing differs from a plain cache
  // Where blocks of tokens are chosen, short cases choose them all: then longer ones.
  for (int attempt = 0; attempt < 2 * kAttempts && static_cast<int>(out.size()) < count; ++attempt) {
    if (attempt == kAttempts && (!out.empty() || method.family == Family::baseline)) break;
    const Scenario s = scenarios::draw(method, 700000 + static_cast<std::uint64_t>(attempt % kAttempts));
    if (row_bytes(s.shape) > kRowBytes || s.shape.classes.front().k_dim < 16) continue;
    std::int64_t trained = 0;
    for (const auto& [name, tensor] : scenarios::trained_inputs(method, s.row, s.shape, s.prompt, s.seed)) trained += static_cast<std::int64_t>(tensor.values.size()) * 4;
    if (trained > kStateBytes) continue;
    VectorCase c = case_of(s, cat("case", out.size()), out.size() % 2 == 1, attempt < kAttempts ? 1 : 4);
    if (state_bytes(c) > (attempt < kAttempts ? 2 : 8) * kStateBytes) continue;
    if (like_full(c)) {
      if (!plain) plain = std::move(c);
      continue;
    }
    out.push_back(std::move(c));
  }
  if (out.empty() && plain) out.push_back(std::move(*plain));
  if (out.empty()) throw InvalidArgument(cat(method.slug, ": no small case found"));
  return out;
}

VectorCase group_case(const Method& method) {
  VectorCase c{.name = "case0", .kind = VectorKind::group, .choice = {&method, defaults_of(method.params)},
               .shape = uniform_shape(1, 2, 1, 32, Dtype::bf16, {.base = 10000.0, .rotary_dim = 32}), .prompt = 14, .chunk = 14, .decode = kDecode, .inputs = {}, .trained = {}, .outputs = {}, .stages = {}};
  fill_inputs(c, c.prompt + 2 * c.decode, 42);
  run(c);
  return c;
}

VectorCase conversion_case(const Method& method) {
  VectorCase c{.name = "case0", .kind = VectorKind::conversion, .choice = {&method, defaults_of(method.params)},
               .shape = uniform_shape(1, 2, 1, 32, Dtype::bf16, {.base = 10000.0, .rotary_dim = 32}), .inputs = {}, .trained = {}, .outputs = {}, .stages = {}};
  const LayerClass& lc = c.shape.classes.front();
  constexpr std::int64_t kHidden = 24, kTokens = 48;
  scenarios::Random random(7);
  const auto add = [&](const char* name, std::vector<std::int64_t> dims) {
    NamedTensor t = zeros(std::move(dims));
    for (float& x : t.values) x = random.normal() * 0.3F;
    c.inputs[name] = std::move(t);
  };
  add("w_q", {lc.q_heads * lc.k_dim, kHidden});
  add("w_k", {lc.kv_heads * lc.k_dim, kHidden});
  add("w_v", {lc.kv_heads * lc.v_dim, kHidden});
  add("w_o", {kHidden, lc.q_heads * lc.v_dim});
  add("calibration", {kTokens, kHidden});
  // Sizes of the defaults are those of real layers; one this small would keep everything.
  for (std::size_t i = 0; i < method.params.size(); ++i)
    for (const auto& [name, value] : {std::pair{"kv_lora_rank", 20.0}, std::pair{"qk_rope_dim", 16.0}, std::pair{"freqfold", 2.0}})
      if (std::string_view(method.params[i].name) == name) c.choice.row[i] = value;
  if (const auto sentence = why_not(method, c.choice.row, c.shape)) throw Unsupported(*sentence);
  run(c);
  return c;
}

}  // namespace

const char* name_of(VectorKind kind) {
  static constexpr const char* kNames[] = {"cache", "group", "conversion"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::vector<VectorCase> vector_cases(const Method& method, int count) {
  if (count < 1 || count > 16) throw InvalidArgument(cat("cases is ", count, ", must be from 1 to 16"));
  if (method.open != nullptr) return cache_cases(method, count);
  if (method.open_group != nullptr) return {group_case(method)};
  if (method.convert != nullptr) return {conversion_case(method)};
  throw Unsupported(cat(method.slug, " answers with tokens of a target and a draft model, so it has no vectors of its own"));
}

VectorCase rerun(const VectorCase& from) {
  VectorCase c = from;
  run(c);
  return c;
}

std::vector<std::string> differences(const VectorCase& expected, const VectorCase& got) {
  std::vector<std::string> out;
  for (const auto& [name, tensor] : expected.outputs) {
    const auto other = got.outputs.find(name);
    if (other == got.outputs.end()) {
      out.push_back(cat(name, " is missing"));
      continue;
    }
    if (other->second.dims != tensor.dims) {
      out.push_back(cat(name, " has another shape"));
      continue;
    }
    for (std::size_t i = 0; i < tensor.values.size(); ++i)
      if (std::bit_cast<std::uint32_t>(tensor.values[i]) != std::bit_cast<std::uint32_t>(other->second.values[i])) {
        out.push_back(cat(name, " differs first at element ", i, ": ", tensor.values[i], " expected, ", other->second.values[i], " found"));
        break;
      }
  }
  for (const auto& [name, tensor] : got.outputs)
    if (!expected.outputs.contains(name)) out.push_back(cat(name, " is not expected"));
  if (expected.stages.size() != got.stages.size()) {
    out.push_back(cat(expected.stages.size(), " stages expected, ", got.stages.size(), " found"));
    return out;
  }
  for (std::size_t s = 0; s < expected.stages.size(); ++s) {
    const auto &a = expected.stages[s].buffers, &b = got.stages[s].buffers;
    for (const StoredBuffer& buffer : a) {
      const auto other = std::find_if(b.begin(), b.end(), [&](const StoredBuffer& o) { return o.name == buffer.name; });
      if (other == b.end()) {
        out.push_back(cat("buffer ", buffer.name, " is missing after stage ", expected.stages[s].name));
      } else if (other->bytes != buffer.bytes) {
        const auto at = std::mismatch(buffer.bytes.begin(), buffer.bytes.end(), other->bytes.begin(), other->bytes.end()).first - buffer.bytes.begin();
        out.push_back(cat("buffer ", buffer.name, " differs first at byte ", at, " of ", buffer.bytes.size(), " after stage ", expected.stages[s].name));
      } else if (!(*other == buffer)) {
        out.push_back(cat("buffer ", buffer.name, " is ", other->component, ", ", other->side, ", ", other->scope, " after stage ", expected.stages[s].name));
      }
    }
    if (a.size() != b.size()) out.push_back(cat(a.size(), " buffers expected after stage ", expected.stages[s].name, ", ", b.size(), " found"));
  }
  return out;
}

}  // namespace kvatlas::answers
