#include "tests/support/side_rows.hpp"

#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::test {

namespace {
std::vector<std::byte> joined(const std::vector<NamedBuffer>& buffers, std::string_view component) {
  std::vector<std::byte> all;
  for (const NamedBuffer& b : buffers)
    if (b.component == component) all.insert(all.end(), b.bytes.begin(), b.bytes.end());
  return all;
}
std::vector<float> floats(const std::vector<std::byte>& bytes, Dtype dtype) {
  std::vector<float> values(bytes.size() / static_cast<std::size_t>(bytes_of(dtype)));
  num::load(dtype, bytes, values);
  return values;
}
}  // namespace

std::vector<int> StoredSide::bytes(std::string_view component) const {
  std::vector<int> values;
  for (const std::byte b : joined(buffers, component)) values.push_back(static_cast<int>(b));
  return values;
}
std::vector<float> StoredSide::fp16(std::string_view component) const { return floats(joined(buffers, component), Dtype::f16); }
std::vector<float> StoredSide::f32(std::string_view component) const { return floats(joined(buffers, component), Dtype::f32); }

StoredSide store_rows(const std::string& recipe, Side side, int dim, const std::vector<float>& rows, Dtype dtype) {
  const MethodChoice m = parse_choice(recipe);
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = dim, .v_dim = dim, .layers = {0}};
  const auto store = m.method->open_side(m.row, c, 0, side, dtype);
  const std::int64_t count = static_cast<std::int64_t>(rows.size()) / dim;
  Array in({1, count, dim}), out({count, dim});
  std::copy(rows.begin(), rows.end(), in.values().begin());
  store->append(in.view());
  store->settle(true);
  store->read(0, 0, out.view());
  StoredSide s{.buffers = {}, .decoded = out.values()};
  store->buffers("", s.buffers);
  return s;
}

double bits_per_value(const std::string& recipe, int head_dim, std::int64_t tokens, Dtype dtype) {
  const MethodChoice m = parse_choice(recipe);
  const CacheShape shape = uniform_shape(1, 4, 2, head_dim, dtype, {.rotary_dim = head_dim});
  const Ledger ledger = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(tokens)});
  return 8.0 * static_cast<double>(ledger.total().value) / static_cast<double>(tokens * 2 * 2 * head_dim);
}

std::string refusal(const std::string& recipe, int head_dim, RowKind kind, Tokens window) {
  const MethodChoice m = parse_choice(recipe);
  CacheShape shape = uniform_shape(1, 4, 2, head_dim, Dtype::bf16, {.rotary_dim = head_dim});
  shape.classes[0].kind = kind;
  shape.classes[0].window = window;
  if (kind == RowKind::latent) shape.classes[0].kv_heads = 1;
  if (kind == RowKind::pooled) shape.classes[0].pool = 4;
  return m.method->why_not(m.row, shape).value_or("");
}

}  // namespace kvatlas::test
