#include "reference/compose/compress.hpp"

#include <cmath>
#include <numeric>

#include "core/errors.hpp"
#include "reference/primitives/step.hpp"

namespace kvatlas {

namespace {

/// Sums of squares of a difference and of what it is a difference from. Printed figures, not stored bits: plain float64.
struct Distance {
  double difference = 0, norm = 0;
  void add(std::span<const float> got, std::span<const float> want) {
    for (std::size_t i = 0; i < want.size(); ++i) {
      const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
      difference += d * d;
      norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
    }
  }
  double relative() const { return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference); }
};

struct Positions {
  explicit Positions(std::int64_t first, std::int64_t n) : values(static_cast<std::size_t>(n)) {
    std::iota(values.begin(), values.end(), first);
  }
  View<const std::int64_t> view() const { return {values.data(), {static_cast<std::int64_t>(values.size())}}; }
  std::vector<std::int64_t> values;
};

/// Tokens [first, first + n) as one step.
StepInput step_of(const KvRows& rows, std::int64_t first, std::int64_t n, const Positions& positions) {
  return {.q = rows.q.slice(1, first, n), .k = rows.k.slice(1, first, n), .v = rows.v.slice(1, first, n), .positions = positions.view()};
}

double side_error(SideStore& store, const StepInput& step, View<const float> rows, std::optional<Array>& kept) {
  store.observe(step);  // some code by what queries look at
  store.append(rows);
  store.settle(false);
  store.settle(true);
  KV_ASSERT(store.size().value == rows.dim(1), "a side store holds every row of its side");
  Distance distance;
  Array& decoded = kept.emplace(Array({rows.dim(0), rows.dim(1), rows.dim(2)}));
  for (std::int64_t h = 0; h < rows.dim(0); ++h) {
    store.read(static_cast<int>(h), 0, decoded.view()[h]);
    for (std::int64_t t = 0; t < rows.dim(1); ++t) distance.add(decoded.view().row(h, t), rows.row(h, t));
  }
  return distance.relative();
}

/// Decodes the last tokens through a cache that compressed everything before them, beside exact attention.
double attention_error(const BoundRecipe& recipe, const KvRows& rows, const PreparedStep& all, const OpenInputs& inputs, std::int64_t probes) {
  const CacheShape& shape = recipe.shape();
  const LayerClass& c = shape.classes[0];
  const int layer = c.layers[0];
  const std::int64_t n = rows.k.dim(1), prompt = n - probes;
  Array exact({c.q_heads, probes, c.v_dim});
  for (int h = 0; h < c.kv_heads; ++h)
    attend_new(c, h, all.q.view().slice(1, prompt, probes), all.k.view()[h], all.v.view()[h], {}, {}, exact.view());

  const auto cache = recipe.open(inputs);
  const Positions before(0, prompt);
  Array out({c.q_heads, prompt, c.v_dim});
  cache->forward(layer, step_of(rows, 0, prompt, before), out.view());
  cache->end_prefill();
  Distance distance;
  for (std::int64_t i = 0; i < probes; ++i) {
    const Positions at(prompt + i, 1);
    Array one({c.q_heads, 1, c.v_dim});
    cache->forward(layer, step_of(rows, prompt + i, 1, at), one.view());
    for (int h = 0; h < c.q_heads; ++h) distance.add(one.view().row(h, 0), exact.view().row(h, i));
  }
  return distance.relative();
}

}  // namespace

Compression compress(const Recipe& recipe, const CacheShape& shape, const KvRows& given, const OpenInputs& inputs, std::int64_t probes) {
  const BoundRecipe bound = recipe.bind(shape);
  KV_ASSERT(shape.classes.size() == 1 && shape.classes[0].count() == 1, "compress() works on one layer");
  const LayerClass& c = shape.classes[0];
  const int layer = c.layers[0];
  const std::int64_t n = given.k.rank() == 3 ? given.k.dim(1) : 0;
  if (n == 0) throw InvalidArgument("k has no tokens");
  const bool has_queries = !given.q.empty();
  // Without queries the cache still stores every row; zero queries weigh all tokens alike.
  const Array zeros(has_queries ? std::initializer_list<std::int64_t>{0} : std::initializer_list<std::int64_t>{c.q_heads, n, c.k_dim});
  KvRows rows = given;
  if (!has_queries) rows.q = zeros.view();

  const Positions positions(0, n);
  const StepInput whole = step_of(rows, 0, n, positions);
  Compression result;
  Array out({c.q_heads, n, c.v_dim});
  const PreparedStep all = prepare_step(shape, Rotary(shape), layer, whole, out.view());
  {
    const auto cache = bound.open(inputs);
    cache->forward(layer, whole, out.view());
    cache->end_prefill();
    result.buffers = cache->buffers();
  }
  result.ledger = count_ledger(result.buffers);
  result.dense = dense_bytes(shape, Tokens(n));
  const auto stored = static_cast<double>(result.ledger.total().value), dense = static_cast<double>(result.dense.value);
  result.bits_per_value = 8 * stored * bytes_of(shape.dtype) / dense;
  result.size_factor = dense / stored;
  if (const auto store = bound.open_side(layer, Side::key)) {
    result.decoded_before_rope = store->before_rope();
    result.k_rel_error = side_error(*store, whole, store->before_rope() ? all.k_pre.view() : all.k.view(), result.k_decoded);
  }
  if (const auto store = bound.open_side(layer, Side::value)) result.v_rel_error = side_error(*store, whole, all.v.view(), result.v_decoded);
  result.probes = has_queries ? std::min(probes, n - 1) : 0;
  if (result.probes > 0) result.attention_rel_error = attention_error(bound, rows, all, inputs, result.probes);
  return result;
}

}  // namespace kvatlas
