#include <cmath>

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::vector<float> turboquant_rows(int dim, int count, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> x;
  for (int i = 0; i < dim * count; ++i) x.push_back(random.normal());
  return x;
}

/// Squared error over squared norm, mean over rows.
double distortion(const std::string& recipe, Side side, int dim, int count) {
  const std::vector<float> x = turboquant_rows(dim, count, 5);
  const std::vector<float> y = store_rows(recipe, side, dim, x).decoded;
  double total = 0;
  for (int r = 0; r < count; ++r) {
    double error = 0, norm = 0;
    for (std::size_t i = static_cast<std::size_t>(r * dim); i < static_cast<std::size_t>((r + 1) * dim); ++i) {
      error += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
      norm += std::pow(static_cast<double>(x[i]), 2);
    }
    total += error / norm;
  }
  return total / count;
}

}  // namespace

TEST_CASE("turboquant: slots of vLLM's presets have their bytes at head_dim 128", "[unit]") {
  const auto slot = [](const char* recipe) { return bits_per_value(recipe, 128, 8) * 256 / 8; };
  CHECK(slot("turboquant:variant=vllm,k_bits=8,v_bits=4") == 196);
  CHECK(slot("turboquant:variant=vllm,k_bits=4,v_bits=4") == 134);
  CHECK(slot("turboquant:variant=vllm,k_bits=3,v_bits=4") == 118);
  CHECK(slot("turboquant:variant=vllm,k_bits=3,v_bits=3") == 102);
}

TEST_CASE("turboquant: vLLM's values by hand", "[unit]") {
  std::vector<float> row(16, 0.0F);
  row[1] = 1;
  row[2] = 2;
  row[3] = 3.1F;
  const StoredSide s = store_rows("turboquant:variant=vllm,k_bits=4,v_bits=4", Side::value, 16, row);
  CHECK(s.bytes("scales") == std::vector<int>{0x9D, 0x32});
  CHECK(s.bytes("codes")[0] == 0x50);
  CHECK(s.bytes("codes")[1] == 0xFA);
  CHECK(s.fp16("zeros") == std::vector<float>{0});
}

TEST_CASE("turboquant: vLLM's keys: zeros take the upper middle code, 8 bits are E4M3", "[unit]") {
  const StoredSide zero = store_rows("turboquant:variant=vllm,k_bits=4,v_bits=4", Side::key, 16, std::vector<float>(16, 0.0F));
  CHECK(zero.bytes("codes") == std::vector<int>(8, 0x88));
  CHECK(zero.fp16("norms") == std::vector<float>{0});
  CHECK(zero.decoded == std::vector<float>(16, 0.0F));
  std::vector<float> row(16, 17.0F);
  CHECK(store_rows("turboquant:variant=vllm,k_bits=8,v_bits=4", Side::key, 16, row).decoded == std::vector<float>(16, 16.0F));
}

TEST_CASE("turboquant: norm correction restores the norm of a key that is one row of the Hadamard matrix", "[unit]") {
  std::vector<float> row(64, 0.5F);  // norm 4; rotated: one channel of 4, all others 0
  const auto norm_of = [](const std::vector<float>& x) {
    double sum = 0;
    for (const float f : x) sum += static_cast<double>(f) * static_cast<double>(f);
    return std::sqrt(sum);
  };
  const double plain = norm_of(store_rows("turboquant:variant=vllm,k_bits=3,v_bits=3", Side::key, 64, row).decoded);
  const double corrected = norm_of(store_rows("turboquant:variant=vllm,k_bits=3,v_bits=3,norm_correction=true", Side::key, 64, row).decoded);
  CHECK(corrected == Approx(4.0).epsilon(1e-5));
  CHECK(std::fabs(plain - 4.0) > 0.3);
}

TEST_CASE("turboquant: the paper's form reaches the distortion of its levels", "[unit]") {
  // Squared error of a unit vector in the Gaussian limit; at 128 channels a little below.
  CHECK(distortion("turboquant:k_bits=1", Side::key, 128, 40) == Approx(0.36338).epsilon(0.05));
  CHECK(distortion("turboquant:k_bits=2", Side::key, 128, 40) == Approx(0.117482).epsilon(0.06));
  CHECK(distortion("turboquant:v_bits=3", Side::value, 128, 40) == Approx(0.034548).epsilon(0.08));
  CHECK(distortion("turboquant:v_bits=4", Side::value, 128, 40) == Approx(0.009501).epsilon(0.1));
}

TEST_CASE("turboquant: the sketch makes products with a query unbiased over seeds", "[unit]") {
  const std::vector<float> k = turboquant_rows(32, 1, 9), q = turboquant_rows(32, 1, 10);
  double exact = 0, levels = 0, sketched = 0;
  for (std::size_t i = 0; i < 32; ++i) exact += static_cast<double>(k[i]) * static_cast<double>(k[i]);
  const int seeds = 300;
  for (int seed = 0; seed < seeds; ++seed) {
    // The query is the key itself: levels alone shrink that product.
    const std::vector<float> a = store_rows(cat("turboquant:k_bits=1,seed=", seed), Side::key, 32, k).decoded;
    const std::vector<float> b = store_rows(cat("turboquant:k_bits=2,sketch=true,seed=", seed), Side::key, 32, k).decoded;
    for (std::size_t i = 0; i < 32; ++i) {
      levels += static_cast<double>(a[i]) * static_cast<double>(k[i]) / seeds;
      sketched += static_cast<double>(b[i]) * static_cast<double>(k[i]) / seeds;
    }
  }
  CHECK(levels < 0.72 * exact);
  CHECK(sketched == Approx(exact).epsilon(0.04));
}

TEST_CASE("turboquant: refusals say what is allowed", "[unit]") {
  CHECK(refusal("turboquant:k_bits=5", 64) == "k_bits is 5, must be at most 4");
  CHECK(refusal("turboquant:variant=vllm,k_bits=5", 64) == "k_bits is 5, must be at most 4, or 8");
  CHECK(refusal("turboquant:v_bits=8", 64) == "v_bits is 8, must be at most 4 in the paper's form");
  CHECK(refusal("turboquant:variant=vllm,sketch=true", 64) == "sketch is true, must be false in vLLM's form, which leaves it out");
  CHECK(refusal("turboquant:k_bits=1,sketch=true", 64) == "k_bits is 1, must be at least 2: the sketch takes one bit");
  CHECK(refusal("turboquant:variant=vllm", 80) == "head_dim is 80, must be a power of two from 16 on in vLLM's form");
  CHECK(refusal("turboquant", 64, RowKind::latent) == "a layer keeps latent rows, must keep keys and values");
}
