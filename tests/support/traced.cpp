#include "tests/support/traced.hpp"

#include <algorithm>
#include <cstring>

#include "core/arith.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/support/scenario.hpp"

namespace kvatlas::test {

namespace {

Array copy_of(View<const float> from) {
  Array to({from.dim(0), from.dim(1), from.dim(2)});
  for (std::int64_t h = 0; h < from.dim(0); ++h)
    for (std::int64_t i = 0; i < from.dim(1); ++i) std::ranges::copy(from.row(h, i), to.view().row(h, i).begin());
  return to;
}

}  // namespace

Traced::Traced(View<const float> q, View<const float> k) : Traced(copy_of(q), copy_of(k)) {}

Traced::Traced(const GoldenCase& golden) : Traced(without_batch(golden.floats("q")), without_batch(golden.floats("k"))) {}

Traced::Traced(Array q, Array k) : q_(std::move(q)), k_(std::move(k)), v_({k_.dims()[0], k_.dims()[1], k_.dims()[2]}) {
  shape_ = uniform_shape(1, static_cast<int>(q_.dims()[0]), static_cast<int>(k_.dims()[0]), static_cast<int>(k_.dims()[2]), Dtype::f32);
  for (std::int64_t h = 0; h < k_.dims()[0]; ++h)
    for (std::int64_t t = 0; t < k_.dims()[1]; ++t) v_.view()(h, t, 0) = static_cast<float>(t);
}

Traced random_traced(int q_heads, int kv_heads, std::int64_t tokens, int dim, std::uint64_t seed) {
  Random random(seed);
  Array q({q_heads, tokens, dim}), k({kv_heads, tokens, dim});
  for (Array* a : {&q, &k})
    for (float& f : a->values()) f = random.normal();
  return Traced(q.view(), k.view());
}

std::unique_ptr<KvCache> Traced::open(const std::string& setting) const {
  const MethodChoice choice = parse_choice(setting);
  if (const auto reason = why_not(*choice.method, choice.row, shape_)) throw Unsupported(*reason);
  return choice.method->open(choice.row, shape_, {});
}

Array Traced::run(KvCache& cache, std::int64_t first, std::int64_t n, int layer) const {
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < n; ++i) positions.push_back(first + i);
  Array out({q_.dims()[0], n, k_.dims()[2]});
  cache.forward(layer, {.q = q().slice(1, first, n), .k = k().slice(1, first, n), .v = View<const float>(v_.view()).slice(1, first, n),
                    .positions = {positions.data(), {n}}},
                out.view());
  return out;
}

std::vector<std::int64_t> tokens_held(const KvCache& cache, int head) {
  const auto buffers = cache.buffers();
  const NamedBuffer& keys = find_buffer(buffers, cat("layer0/k_rows/head", head));
  const NamedBuffer& values = find_buffer(buffers, cat("layer0/v_rows/head", head));
  const std::size_t first_rows = static_cast<std::size_t>(cache.kept(0, 0).value);
  const std::size_t width = first_rows == 0 ? 1 : find_buffer(buffers, "layer0/v_rows/head0").bytes.size() / first_rows;
  std::vector<std::int64_t> tokens;
  for (std::size_t at = 0; at < values.bytes.size(); at += width) {  // heads may hold different counts
    float token = 0;
    std::memcpy(&token, values.bytes.data() + at, sizeof token);
    tokens.push_back(static_cast<std::int64_t>(token));
  }
  KV_ASSERT(keys.bytes.size() == values.bytes.size(), "traced keys and values have one width");
  return tokens;
}

namespace {

int owners(const KvCache& cache) {
  int heads = 0;
  for (const NamedBuffer& b : cache.buffers()) heads += b.name.starts_with("layer0/k_rows/") ? 1 : 0;
  return heads;
}

}  // namespace

std::vector<std::int64_t> tokens_held(const KvCache& cache) {
  std::vector<std::int64_t> all;
  for (int h = 0; h < owners(cache); ++h) {
    const auto head = tokens_held(cache, h);
    all.insert(all.end(), head.begin(), head.end());
  }
  return all;
}

std::vector<float> masses_held(const KvCache& cache) {
  std::vector<float> all;
  const auto buffers = cache.buffers();
  for (int h = 0; h < owners(cache); ++h) {
    const NamedBuffer& mass = find_buffer(buffers, cat("layer0/mass/head", h));
    for (std::size_t at = 0; at < mass.bytes.size(); at += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, mass.bytes.data() + at, sizeof word);
      all.push_back(num::from_mass(word));
    }
  }
  return all;
}

}  // namespace kvatlas::test
