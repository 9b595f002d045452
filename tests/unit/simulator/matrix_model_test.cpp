#include "simulator/matrix_model.hpp"

#include <algorithm>
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

TEST_CASE("one token reads every weight once at the achieved bandwidth; many tokens are bound by the tensor units", "[unit]") {
  const MatrixModel m = matrices("llama-3.1-8b");
  const MatrixTime one = m.time(find(m, "gate_up_proj"), 1);
  CHECK(one.bound == Bound::memory);
  // Published timings of such sizes lie between 0.76 and 0.94 of the peak, behind a launch of 2 to 5 us.
  const double bytes = 28672.0 * 4096 * 2 + 2 * (4096 + 28672);
  CHECK(one.bytes == bytes);
  CHECK(one.seconds > bytes / (0.94 * 3350e9) + 2e-6);
  CHECK(one.seconds < bytes / (0.76 * 3350e9) + 5e-6);
  const MatrixTime many = m.time(find(m, "gate_up_proj"), 8192);
  CHECK(many.bound == Bound::tensor);
  CHECK(many.seconds == Approx(2.0 * 8192 * 28672 * 4096 / 765e12).epsilon(0.1));
  CHECK(m.time(find(m, "o_proj"), 129).flops == 2.0 * 129 * 4096 * 4096);
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
