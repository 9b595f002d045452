#include "models/runtime/packed_matrix.hpp"

#include <algorithm>

#include "core/arith.hpp"
#include "core/parallel.hpp"
#include "core/philox.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::models;

namespace {

std::vector<float> draw(std::uint32_t what, std::int64_t n) {
  std::vector<float> x(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = random_uniform({.seed = 7, .layer = what}, i) * 4.0F - 2.0F;
  return x;
}

struct Product {
  std::int64_t tokens, out, in;
  std::vector<float> x, w;
  PackedMatrix packed;
  Product(std::int64_t t, std::int64_t o, std::int64_t i) : tokens(t), out(o), in(i), x(draw(1, t * i)), w(draw(2, o * i)) {
    packed = PackedMatrix(o, i, [this](std::int64_t first, std::int64_t count, std::span<float> to) {
      std::copy_n(w.begin() + static_cast<std::ptrdiff_t>(first * in), count * in, to.begin());
    });
  }
  std::vector<float> run(ProductKernel kernel) const {
    std::vector<float> y(static_cast<std::size_t>(tokens * out), 99.0F);
    packed.multiply(View<const float>(x.data(), {tokens, in}), View<float>(y.data(), {tokens, out}), kernel);
    return y;
  }
  /// The definition: one accumulator, increasing k, fused.
  std::vector<float> defined() const {
    std::vector<float> y;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t o = 0; o < out; ++o) {
        float sum = 0;
        for (std::int64_t k = 0; k < in; ++k)
          sum = num::fma(x[static_cast<std::size_t>(t * in + k)], w[static_cast<std::size_t>(o * in + k)], sum);
        y.push_back(sum);
      }
    return y;
  }
};

}  // namespace

TEST_CASE("every micro-kernel gives the bits of one accumulator over increasing inputs", "[unit]") {
  for (const auto& [t, o, i] : {std::tuple{1, 16, 1}, {1, 100, 33}, {1, 300, 64}, {2, 17, 5}, {5, 48, 31}, {7, 15, 40}, {12, 64, 8}, {13, 130, 19}, {100, 96, 57}}) {
    const Product p(t, o, i);
    const auto want = p.defined();
    CAPTURE(t, o, i);
    for (const auto kernel : {ProductKernel::scalar, ProductKernel::avx2, ProductKernel::avx512, ProductKernel::automatic})
      if (available(kernel)) CHECK(p.run(kernel) == want);
  }
}

TEST_CASE("tokens in a call, threads and a cut of the outputs change no bit of a product", "[unit]") {
  const Product p(64, 272, 200);
  const int before = threads();
  const auto whole = p.run(ProductKernel::automatic);
  set_threads(1);
  CHECK(p.run(ProductKernel::automatic) == whole);
  set_threads(before);
  std::vector<float> single(whole.size());
  for (std::int64_t t = 0; t < p.tokens; ++t)
    p.packed.multiply(View<const float>(p.x.data() + t * p.in, {1, p.in}), View<float>(single.data() + t * p.out, {1, p.out}));
  CHECK(single == whole);
  std::vector<float> cut(static_cast<std::size_t>(p.tokens * 40));
  p.packed.multiply_some(View<const float>(p.x.data(), {p.tokens, p.in}), 32, View<float>(cut.data(), {p.tokens, 40}));
  for (std::int64_t t = 0; t < p.tokens; ++t)
    CHECK(std::equal(cut.begin() + static_cast<std::ptrdiff_t>(t * 40), cut.begin() + static_cast<std::ptrdiff_t>((t + 1) * 40),
                     whole.begin() + static_cast<std::ptrdiff_t>(t * p.out + 32)));
}
