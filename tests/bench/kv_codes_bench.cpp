// Quantize and attend on one core: GB/s of the original bf16 keys and values beside a plain memory copy of the same run. First the common
// formats through the wide forms of core/, then the reference of every quantization method. Processor time of this thread, the best of
// several turns.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string_view>
#include <vector>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/group_codes.hpp"
#include "core/parallel.hpp"
#include "reference/compose/trained_inputs.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/registry.hpp"

namespace {

using namespace kvatlas;

double now() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double best_seconds(double least, const auto& body) {
  double best = 1e9, spent = 0;
  do {
    const double start = now();
    body();
    const double s = now() - start;
    best = std::min(best, s);
    spent += s;
  } while (spent < least);
  return best;
}

constexpr std::int64_t kHeads = 128, kTokens = 4096, kDim = 128, kGroup = 32;
constexpr std::size_t kTileRows = 32;  // rows that are float32 at a time: they stay in the first caches
constexpr double kBytes = 2.0 * 2 * kHeads * kTokens * kDim;  // keys and values in bf16

float drawn(std::uint64_t& state) {
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    sum += static_cast<float>(static_cast<std::int64_t>(state >> 40) - (1 << 23)) * 0x1p-23F;
  }
  return sum;
}

/// One side of one head in memory: codes and what describes them.
struct Coded {
  std::vector<std::byte> codes;
  std::vector<std::uint16_t> scales, zeros;
};

/// bits 8 with group false: E4M3 with scale 1.
struct Format {
  const char* name;
  int bits;
  bool groups;
};
constexpr Format kFormats[] = {{"int8, groups of 32", 8, true}, {"int4, groups of 32", 4, true}, {"int2, groups of 32", 2, true}, {"fp8 e4m3", 8, false}};

std::span<std::byte> part(std::vector<std::byte>& bytes, std::size_t at, std::size_t n) { return std::span(bytes).subspan(at, n); }

/// Rows [first, first + kTileRows) of a side: keys in groups along tokens, values in groups along channels.
void encode(const Format& f, bool keys, std::span<const float> tile, std::size_t first, Coded& to) {
  const auto bytes = [&](std::size_t values) { return values * static_cast<std::size_t>(f.bits) / 8; };
  const auto dim = static_cast<std::size_t>(kDim), group = static_cast<std::size_t>(kGroup);
  if (!f.groups) return num::encode_e4m3_row(tile, 1.0F, part(to.codes, first * dim, tile.size()));
  for (std::size_t r = 0; keys && r < kTileRows; r += group) {
    const std::size_t at = (first + r) * dim, meta = at / group;
    num::encode_columns(tile.subspan(r * dim, group * dim), f.bits, part(to.codes, bytes(at), bytes(group * dim)), std::span(to.scales).subspan(meta, dim), std::span(to.zeros).subspan(meta, dim));
  }
  const std::size_t meta = first * dim / group, groups = tile.size() / group;
  if (!keys) num::encode_groups(tile, f.bits, part(to.codes, bytes(first * dim), bytes(tile.size())), std::span(to.scales).subspan(meta, groups), std::span(to.zeros).subspan(meta, groups));
}

void decode(const Format& f, bool keys, Coded& from, std::size_t first, std::span<float> tile) {
  const auto bytes = [&](std::size_t values) { return values * static_cast<std::size_t>(f.bits) / 8; };
  const auto dim = static_cast<std::size_t>(kDim), group = static_cast<std::size_t>(kGroup);
  if (!f.groups) return num::decode_e4m3_row(part(from.codes, first * dim, tile.size()), 1.0F, tile);
  for (std::size_t r = 0; keys && r < kTileRows; r += group) {
    const std::size_t at = (first + r) * dim, meta = at / group;
    num::decode_columns(part(from.codes, bytes(at), bytes(group * dim)), f.bits, std::span(from.scales).subspan(meta, dim), std::span(from.zeros).subspan(meta, dim), tile.subspan(r * dim, group * dim));
  }
  const std::size_t meta = first * dim / group, groups = tile.size() / group;
  if (!keys) num::decode_groups(part(from.codes, bytes(first * dim), bytes(tile.size())), f.bits, std::span(from.scales).subspan(meta, groups), std::span(from.zeros).subspan(meta, groups), tile);
}

void print_row(const char* name, double quantize, double attend, double copy) {
  std::printf("%-34s %9.3f %7.3f %9.3f %7.3f\n", name, quantize, quantize / copy, attend, attend / copy);
  std::fflush(stdout);
}

/// Each format: all heads from bf16 to packed bytes, then one query a head over all packed rows.
void wide_forms(double copy) {
  std::uint64_t state = 1;
  const auto dim = static_cast<std::size_t>(kDim), tokens = static_cast<std::size_t>(kTokens), side = dim * tokens;
  std::vector<std::vector<std::byte>> original;  // [head][keys, values] in bf16
  std::vector<float> row(side);
  for (std::int64_t h = 0; h < kHeads; ++h) {
    for (int s = 0; s < 2; ++s) {
      for (float& x : row) x = drawn(state);
      original.emplace_back(2 * side);
      num::store(Dtype::bf16, row, original.back());
    }
  }
  std::vector<float> query(dim);
  for (float& x : query) x = drawn(state);
  for (const Format& f : kFormats) {
    std::vector<Coded> coded(original.size());
    for (Coded& c : coded) c = {.codes = std::vector<std::byte>(side * static_cast<std::size_t>(f.bits) / 8), .scales = std::vector<std::uint16_t>(f.groups ? side / 32 : 0), .zeros = std::vector<std::uint16_t>(f.groups ? side / 32 : 0)};
    std::vector<float> tile(kTileRows * dim), values(side), logit(tokens), out(dim);
    const double quantize = best_seconds(1.0, [&] {
      for (std::size_t s = 0; s < original.size(); ++s)
        for (std::size_t t = 0; t < tokens; t += kTileRows) {
          num::load(Dtype::bf16, std::span(original[s]).subspan(2 * t * dim, 2 * kTileRows * dim), tile);
          encode(f, s % 2 == 0, tile, t, coded[s]);
        }
    });
    const double attend = best_seconds(1.0, [&] {
      for (std::size_t s = 0; s < original.size(); s += 2) {
        for (std::size_t t = 0; t < tokens; t += kTileRows) {
          decode(f, true, coded[s], t, tile);
          logits(query, View<const float>(tile.data(), {static_cast<std::int64_t>(kTileRows), kDim}), 0.1F, std::span(logit).subspan(t, kTileRows));
          decode(f, false, coded[s + 1], t, std::span(values).subspan(t * dim, kTileRows * dim));
        }
        finish(softmax_part(logit, View<const float>(values.data(), {kTokens, kDim})), out);
      }
    });
    print_row(f.name, kBytes / quantize / 1e9, kBytes / attend / 1e9, copy);
  }
}

/// A method's reference on one layer: the prompt's time beyond that of the plain cache, and a step over the coded rows.
void references(double copy, std::string_view only) {
  constexpr std::int64_t kPrompt = 1024;
  const CacheShape shape = uniform_shape(1, 2, 2, static_cast<int>(kDim), Dtype::bf16, {.base = 10000.0, .rotary_dim = static_cast<int>(kDim)});
  const double bytes = 2.0 * 2 * 2 * kPrompt * static_cast<double>(kDim);
  Array q({2, kPrompt + 64, kDim}), k({2, kPrompt + 64, kDim}), v({2, kPrompt + 64, kDim});
  std::uint64_t state = 2;
  for (Array* a : {&q, &k, &v})
    for (float& x : a->values()) x = drawn(state);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(kPrompt) + 64);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int64_t>(i);
  const auto step = [&](std::int64_t first, std::int64_t n) {
    return StepInput{.q = q.view().slice(1, first, n), .k = k.view().slice(1, first, n), .v = v.view().slice(1, first, n), .positions = View<const std::int64_t>(positions.data() + first, {n})};
  };
  double plain_prompt = 0;
  std::vector<const Method*> methods = {&find_method("full")};
  for (const Method* m : all_methods())
    if (m->open != nullptr && (m->family == Family::quantization || m->family == Family::coding) && (only.empty() || only == m->slug)) methods.push_back(m);
  for (const Method* m : methods) {
    ParamRow row = defaults_of(m->params);
    for (std::size_t i = 0; i < m->params.size(); ++i) {  // a method that keeps so short a prompt plain, or wants hidden states or more heads, is set so that it codes
      const std::string_view name = m->params[i].name;
      if (m->slug == std::string_view("vqkv") && (name == "local_window" || name == "quant_block")) row[i] = 128;
      if (m->slug == std::string_view("rotatekv")) row[i] = name == "sinks" ? 0 : name == "head_group" ? 2 : row[i];
    }
    try {
      const TensorMap trained = scenarios::trained_inputs(*m, row, shape, kPrompt, 1);
      std::unique_ptr<KvCache> cache;
      Array out({2, kPrompt, kDim}), one({2, 1, kDim});
      if (const auto sentence = why_not(*m, row, shape)) throw Unsupported(*sentence);
      const double prompt = best_seconds(0.3, [&] {
        cache = m->open(row, shape, {.trained = trained.empty() ? nullptr : &trained});
        cache->forward(0, step(0, kPrompt), out.view());
        cache->end_prefill();
      });
      if (plain_prompt == 0) plain_prompt = prompt;
      std::int64_t at = kPrompt;
      double attend = 1e9;
      for (; at < kPrompt + 5; ++at) attend = std::min(attend, best_seconds(0, [&] { cache->forward(0, step(at, 1), one.view()); }));
      const double beyond = prompt - plain_prompt;
      if (m == methods.front()) std::printf("%-34s %9s %7s %9.3f %7.3f\n", m->slug, "-", "-", bytes / attend / 1e9, bytes / attend / 1e9 / copy);
      else print_row(m->slug, beyond > 0 ? bytes / beyond / 1e9 : 0, bytes / attend / 1e9, copy);
    } catch (const Error& e) {
      std::printf("%-34s %s\n", m->slug, e.what());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  set_threads(1);
  std::vector<char> from(static_cast<std::size_t>(kBytes), 1), to(from.size());
  const double copy = kBytes / best_seconds(1.0, [&] { std::memcpy(to.data(), from.data(), from.size()); }) / 1e9;
  std::printf("%-34s %9s %7s %9s %7s\n", "GB/s of bf16 keys and values", "quantize", "ratio", "attend", "ratio");
  std::printf("%-34s %9.3f\n", "memory copy", copy);
  std::printf("wide forms, %lld heads x %lld tokens x %lld, one query a head\n", static_cast<long long>(kHeads), static_cast<long long>(kTokens), static_cast<long long>(kDim));
  wide_forms(copy);
  std::printf("references, 2 heads x 1,024 tokens x 128\n");
  references(copy, argc > 1 ? argv[1] : "");
  return to[0] == 1 ? 0 : 1;
}
