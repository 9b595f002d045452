// QServe's KV4 against the statements of the released kernel: scale, zero point and packed codes of a token and head.
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// Bytes of one component, all heads in order.
std::vector<std::byte> bytes_of(const std::vector<NamedBuffer>& buffers, std::string_view component) {
  std::vector<std::byte> all;
  for (const NamedBuffer& b : buffers)
    if (b.component == component) all.insert(all.end(), b.bytes.begin(), b.bytes.end());
  return all;
}

void check_side(const GoldenCase& golden, const std::string& side) {
  if (!golden.has(side)) return;
  const NamedTensor x = golden.floats(side);
  const int heads = golden.parameter<int>("kv_heads"), dim = golden.parameter<int>("head_dim");
  const std::int64_t tokens = golden.parameter<int>("tokens");
  const MethodChoice m = parse_choice("qserve_kv4:code=wrap");
  const LayerClass c{.q_heads = heads, .kv_heads = heads, .k_dim = dim, .v_dim = dim, .layers = {0}};
  const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f16);
  store->append(view_of(x, {heads, tokens, dim}));
  std::vector<NamedBuffer> buffers;
  store->buffers("", buffers);
  const std::vector<std::byte> packed = bytes_of(buffers, "codes");
  std::vector<float> scale(static_cast<std::size_t>(heads * tokens)), zero = scale;
  num::load(Dtype::f16, bytes_of(buffers, "scales"), scale);
  num::load(Dtype::f16, bytes_of(buffers, "zeros"), zero);
  std::vector<std::int64_t> codes;
  for (const std::byte b : packed) codes.push_back(static_cast<std::int64_t>(b));
  // Rows of equal values are 0/0 in the released code: ours have scale 0, codes 0 and the value as zero field.
  const auto accept = [&](auto& ours, const auto& theirs) {
    REQUIRE(ours.size() == theirs.size());
    const std::size_t per_row = ours.size() / scale.size();
    for (std::size_t i = 0; i < ours.size(); ++i)
      if (scale[i / per_row] == 0.0F) ours[i] = theirs[i];
  };
  const std::vector<float> stored_scale = scale;
  if (golden.has(side + "_codes_fma")) {
    accept(codes, golden.integers(side + "_codes_fma").values);
    check_exact(golden, side + "_codes_fma", codes);
  }
  accept(zero, golden.floats(side + "_zero").values);
  check_exact(golden, side + "_zero", zero);
  check_exact(golden, side + "_scale", stored_scale);
}

}  // namespace

TEST_CASE("qserve_kv4 agrees with the released store", "[golden]") {
  for (const GoldenCase& golden : golden_cases("qserve_kv4")) {
    CAPTURE(golden.name());
    check_side(golden, "k");
    check_side(golden, "v");
  }
}
