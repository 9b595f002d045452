#include "simulator/matrix_model.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "models/registry.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

MatrixModel matrices(const char* model, const char* gpu = "h100", WeightFormat f = WeightFormat::bf16, int tp = 1, int ep = 1) {
  return MatrixModel(models::find_model(model), find_gpu(gpu), f, tp, ep, 1, 1.3e-6);
}

const MatrixOp& find(const MatrixModel& m, std::string_view name) {
  const auto found = std::find_if(m.ops().begin(), m.ops().end(), [&](const MatrixOp& op) { return op.name == name; });
  REQUIRE(found != m.ops().end());
  return *found;
}

}  // namespace

TEST_CASE("a dense layer is four fused products and the head comes once", "[unit]") {
  const MatrixModel m = matrices("llama-3.1-8b");
  REQUIRE(m.ops().size() == 5);
  CHECK(find(m, "qkv_proj").n == 4096 + 2 * 1024);
  CHECK(find(m, "gate_up_proj").n == 2 * 14336);
  CHECK(find(m, "down_proj").k == 14336);
  CHECK(find(m, "lm_head").launches == 1);
  CHECK(find(m, "o_proj").launches == 32);
}

TEST_CASE("batquant is a product of 4-bit operands where there are units for it, ptq161 narrow weights unpacked everywhere", "[unit]") {
  const MatrixModel blackwell = matrices("llama-3.1-8b", "b200", WeightFormat::batquant), hopper = matrices("llama-3.1-8b", "h100", WeightFormat::batquant);
  CHECK(find(blackwell, "gate_up_proj").product == Product::fp4);
  CHECK(find(hopper, "gate_up_proj").product == Product::weight_only);
  const MatrixModel narrow = matrices("llama-3.1-8b", "b200", WeightFormat::ptq161), four = matrices("llama-3.1-8b", "b200", WeightFormat::int4_wo);
  const MatrixOp& op = find(narrow, "gate_up_proj");
  CHECK(op.product == Product::weight_only);
  CHECK(narrow.time(op, 1).bytes == Approx(28672.0 * 4096 * 1.61 / 8 + 2 * (4096 + 28672)));
  CHECK(narrow.time(op, 1).seconds < four.time(find(four, "gate_up_proj"), 1).seconds);
  CHECK(blackwell.time(find(blackwell, "gate_up_proj"), 1).bytes > narrow.time(op, 1).bytes);
}

TEST_CASE("one token reads every weight once at the achieved bandwidth; many tokens are bound by the tensor units", "[unit]") {
  const MatrixModel m = matrices("llama-3.1-8b");
  const MatrixTime one = m.time(find(m, "gate_up_proj"), 1);
  CHECK(one.bound == Bound::memory);
  // Published for as many weights on this GPU (TensorRT-LLM; 7,168 x 16,384 and 16,384 x 7,168): 84.7 and 88.6 us for one token, 2.376
  // and 2.474 ms for 8,192.
  CHECK(one.bytes == 28672.0 * 4096 * 2 + 2 * (4096 + 28672));
  CHECK(one.seconds == Approx(86.7e-6).epsilon(0.03));
  const MatrixTime many = m.time(find(m, "gate_up_proj"), 8192);
  CHECK(many.bound == Bound::tensor);
  CHECK(many.seconds == Approx(2.425e-3).epsilon(0.03));
  CHECK(m.time(find(m, "o_proj"), 129).flops == 2.0 * 129 * 4096 * 4096);
}

TEST_CASE("a product is launch, waves and the smooth maximum of bytes, tensor work and the busiest tile, worked by hand", "[unit]") {
  // 128 tokens through 8,192 x 4,096 bf16 weights on 100 SMs, 1 TB/s, 1 Pflop/s: 67,108,864 + 1,048,576 + 2,097,152 B.
  const Profile profile{.name = "toy", .family = KernelFamily::matrix, .c = {3e-6, 0.5, 2, 1e-6, 0.1, 0.9}};
  const GpuConstants g{.gpu = "toy", .compute_capability = "9.0", .c = {0.8, 4, 0.5, 1.0}};
  const Machine machine{.sms = 100, .clock = 1e9, .bandwidth = 1e12, .l2_bytes = 50e6, .tensor = 1e15, .achieved = 0.8e15, .vector = 1e14};
  const MatrixTerms t = matrix_terms(machine, g, profile, {.groups = 1, .m = 128, .n = 8192, .k = 4096, .weight_bytes = 2, .activation_bytes = 2});
  CHECK(t.launch == 3e-6);
  CHECK(t.bytes == Approx(70254592.0 / (1e12 * 0.8 * 0.9)));      // 97.6 us, nothing of it in L2
  CHECK(t.tensor == Approx(2.0 * 128 * 8192 * 4096 / 0.4e15));    // 21.5 us at half of the achieved rate
  // 32 tiles of 256 x 128, each cut along k in 3: 96 items are one wave; each streams 4,096 / 3 x (256 + 128) x 2 B at two hundredths of the
  // bandwidth.
  CHECK(t.waves == 1e-6);
  CHECK(t.tile == Approx(4096.0 / 3 * 384 * 2 / 2e10));           // 52.4 us
  CHECK(t.seconds() == Approx(4e-6 + 97.58e-6 * std::pow(1 + std::pow(52.43 / 97.58, 4) + std::pow(21.47 / 97.58, 4), 0.25)).epsilon(1e-3));
  SECTION("narrower activations are written first, from 16 bits") {
    const MatrixTerms fp8 = matrix_terms(machine, g, profile, {.groups = 1, .m = 128, .n = 8192, .k = 4096, .weight_bytes = 1, .activation_bytes = 1, .speedup = 2});
    CHECK(t.quantize == 0);
    CHECK(fp8.quantize == Approx(128.0 * 4096 * 3 / 0.72e12));
    CHECK(fp8.seconds() == Approx(fp8.launch + fp8.waves + fp8.quantize + fp8.body()));
  }
}

TEST_CASE("products of 8-bit activations count the pass that makes them", "[unit]") {
  const MatrixModel m = matrices("llama-3.1-8b", "h100", WeightFormat::fp8);
  const MatrixTime t = m.time(find(m, "o_proj"), 1000);
  CHECK(t.bytes == 4096.0 * 4096 + 1000.0 * 4096 * (1 + 2) + 1000.0 * 4096 * (2 + 1));
}

TEST_CASE("tokens meet experts by chance: one token its own, many tokens all of them", "[unit]") {
  const MatrixModel m = matrices("mixtral-8x7b");
  const MatrixOp& op = find(m, "expert_gate_up_proj");
  const double expert = 2.0 * 14336 * 4096 * 2;
  CHECK(op.experts == 8);
  CHECK(m.time(op, 1).bytes == Approx(2 * expert).epsilon(0.001));
  CHECK(m.time(op, 2).bytes == Approx(8 * (1 - 0.75 * 0.75) * expert).epsilon(0.001));
  CHECK(m.time(op, 256).bytes == Approx(8 * expert).epsilon(0.02));
  const MatrixModel spread = matrices("mixtral-8x7b", "h100", WeightFormat::bf16, 4, 4);
  CHECK(find(spread, "expert_gate_up_proj").experts == 2);
  CHECK(find(spread, "expert_gate_up_proj").n == op.n);
}

TEST_CASE("a format without units on this GPU is unpacked to bf16", "[unit]") {
  const MatrixModel a = matrices("llama-3.1-8b", "a100", WeightFormat::fp8), h = matrices("llama-3.1-8b", "h100", WeightFormat::fp8);
  CHECK(find(a, "o_proj").product == Product::weight_only);
  CHECK(find(h, "o_proj").product == Product::fp8);
  CHECK(find(h, "lm_head").product == Product::bf16);
  CHECK(find(matrices("llama-3.1-8b", "b200", WeightFormat::fp4), "o_proj").product == Product::fp4);
  CHECK(h.time(find(h, "gate_up_proj"), 8192).seconds < 0.7 * matrices("llama-3.1-8b").time(find(matrices("llama-3.1-8b"), "gate_up_proj"), 8192).seconds);
}
