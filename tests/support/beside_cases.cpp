#include "tests/support/beside_cases.hpp"

#include <bit>

#include "core/errors.hpp"
#include "reference/registry.hpp"
#include "tests/support/attention_layer.hpp"
#include "tests/support/tiny_model.hpp"

namespace kvatlas::test {

namespace {

void add_bits(std::vector<std::uint32_t>& bits, const std::vector<float>& values) {
  for (const float f : values) bits.push_back(std::bit_cast<std::uint32_t>(f));
}

HashRow speculation_row(const char* name, const ParamRow& row, const SpeculationOptions& options) {
  LogitLog log;
  const CacheShape shape = uniform_shape(2, 4, 2, 16, Dtype::bf16, {.rotary_dim = 16});
  const TargetModel target = tiny_model(shape, 37, 3, 6.0F, &log);
  const auto s = find_method("specpv").speculate(row, target, tiny_draft(tiny_model(shape, 37, 3), {.width = 2, .sampled = !options.greedy}), options);
  s->start(random_prompt(40, 37, 4));
  std::vector<std::uint32_t> bits;
  for (int round = 0; round < 12; ++round)
    for (const TokenId t : s->step()) bits.push_back(static_cast<std::uint32_t>(t));
  bits.insert(bits.end(), log.begin(), log.end());
  const auto buffers = s->cache().buffers();
  return {.method = "specpv", .name = name, .output = digest(bits), .buffers = digest(buffers), .bytes = count_ledger(buffers).total().value};
}

HashRow group_row(Dtype dtype) {
  const CacheShape shape = uniform_shape(2, 4, 2, 16, dtype, {.rotary_dim = 16});
  const auto g = find_method("hydragen").open_group({}, shape);
  std::vector<std::uint32_t> bits;
  const auto feed = [&](std::vector<int> sequences, std::int64_t n) {
    for (int layer = 0; layer < 2; ++layer) {
      std::vector<Inputs> in;
      std::vector<Array> out;
      std::vector<StepInput> steps;
      std::vector<View<float>> views;
      for (const int s : sequences) {
        in.push_back(inputs_for(shape, layer, g->length(s).value - (layer > 0 ? n : 0), n, static_cast<std::uint64_t>(s) + 50));
        out.emplace_back(Array({4, n, 16}));
      }
      for (std::size_t i = 0; i < in.size(); ++i) {
        steps.push_back(in[i].step());
        views.push_back(out[i].view());
      }
      g->forward(layer, sequences, steps, views);
      for (const Array& o : out) add_bits(bits, o.values());
    }
  };
  const int a = g->fork(-1);
  feed({a}, 300);
  const int b = g->fork(a), c = g->fork(a);
  feed({a, b}, 20);
  const int d = g->fork(b);
  feed({a, b, c, d}, 3);
  g->release(a);
  const auto buffers = g->buffers();
  return {.method = "hydragen", .name = name_of(dtype), .output = digest(bits), .buffers = digest(buffers), .bytes = count_ledger(buffers).total().value};
}

/// Bytes are those of the converted weights; the output is a decode through the full cache on the converted rows.
HashRow conversion_row(const char* name, const ParamRow& row, bool biases) {
  const CacheShape shape = uniform_shape(1, 4, 2, 32, Dtype::bf16, {.rotary_dim = 32});
  const LayerClass& c = shape.classes.front();
  const Conversion mla = find_method("transmla").convert(row, shape, random_layer(c, 48, 96, 7, biases));
  std::vector<std::uint32_t> weights;
  for (const auto& [tensor, values] : mla.weights) add_bits(weights, values.values);
  const auto cache = find_method("full").open({}, mla.shape, {});
  std::vector<std::uint32_t> bits;
  add_bits(bits, linalg::to_array(absorbed_layer(random_inputs(40, 48, 8), mla, c, *cache, 36)).values());
  return {.method = "transmla", .name = name, .output = digest(bits), .buffers = digest(weights), .bytes = static_cast<std::int64_t>(weights.size()) * 4};
}

}  // namespace

std::vector<HashRow> beside_hash_rows() {
  // block, sink_blocks, retrieval_blocks, window_blocks, buffer, tree_size, depth, score, partial
  return {speculation_row("greedy_code", {4, 1, 3, 2, 9, 8, 4, 0, 1}, {}),
          speculation_row("greedy_quest", {4, 1, 3, 2, 9, 8, 4, 1, 1}, {}),
          speculation_row("sampled", {4, 1, 3, 2, 9, 8, 4, 0, 1}, {.greedy = false, .temperature = 1.1F, .seed = 17}),
          speculation_row("full", {4, 1, 3, 2, 9, 8, 4, 0, 0}, {}),
          group_row(Dtype::bf16),
          group_row(Dtype::f32),
          conversion_row("rank20", {20, 16, 2, 1.0}, false),
          conversion_row("biases", {0, 8, 4, 1.0}, true)};
}

}  // namespace kvatlas::test
