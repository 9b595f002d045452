#include "simulator/reported.hpp"

#include "core/errors.hpp"
#include "simulator/calibration.hpp"
#include "simulator/evaluator.hpp"
#include "models/registry.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

const std::string kHeader = "gpu,framework,model,method,kv_bits,metric,batch,context,baseline,baseline_value,value,unit,source\n";

ReportedCheck check(const std::string& rows) { return check_reported(kHeader + rows, "reported"); }

double step_s(const char* recipe, const char* gpu, const char* model, Tokens prompt, Tokens context, int batch) {
  const models::Model m = models::find_model(model);
  Deployment d;
  d.model = &m, d.gpu = find_gpu(gpu), d.engine = &find_engine("vllm"), d.recipe = Recipe::parse(recipe), d.released_plan = true;
  return Evaluator(std::move(d)).step(prompt, context, batch).step_s;
}

}  // namespace

TEST_CASE("a reported rate is the ratio of two whole steps, above 1 where the method is faster", "[unit]") {
  const ReportedCheck c = check("A100-80GB,vllm-0.26.0,Qwen3-8B,fp8,8,decode_rate,8,16384,bf16,200,250,tok/s,thread\n"
                                "H200-NVL,vllm,Qwen3-30B-A3B,turboquant_4bit_nc,4.5,tpot_ratio,256,8192+1024,fp8,1,7.0,ratio,thread\n");
  REQUIRE(c.figures.size() == 2);
  CHECK(c.figures[0].published == 1.25);
  CHECK(c.figures[0].predicted == Approx(step_s("full", "a100-sxm-80gb", "qwen3-8b", Tokens(16384), Tokens(16384), 8) / step_s("fp8_kv", "a100-sxm-80gb", "qwen3-8b", Tokens(16384), Tokens(16384), 8)));
  CHECK(c.figures[0].low < c.figures[0].predicted);
  CHECK(c.figures[0].predicted < c.figures[0].high);
  CHECK(c.figures[0].direction_right());
  CHECK(c.figures[1].published == Approx(1 / 7.0));
  CHECK(c.figures[1].predicted == Approx(step_s("fp8_kv", "h200", "qwen3-30b-a3b", Tokens(8192), Tokens(8704), 256) / step_s("vllm:turboquant_4bit_nc", "h200", "qwen3-30b-a3b", Tokens(8192), Tokens(8704), 256)));
}

TEST_CASE("where only a model's attention is known its kernels take the place of the baseline's within the reported step", "[unit]") {
  const std::string row = "RTX-5090,llama.cpp-fork,Qwen3.8-27B-IQ3_S,q8_0/q8_0,8.5,decode_rate,1,32768,f16/f16,";
  const ReportedFigure a = check(row + "100,80,tok/s,thread\n").figures.at(0), b = check(row + "50,40,tok/s,thread\n").figures.at(0);
  // The same kernels add the same time to a step of 10 ms and to one of 20 ms.
  CHECK(0.010 / a.predicted - 0.010 == Approx(0.020 / b.predicted - 0.020));
  CHECK(a.predicted < 1);
  CHECK(a.high > 1);  // the ideal kernel would gain
}

TEST_CASE("rows without enough setup are left out with a reason, broken ones name file, line and field", "[unit]") {
  const ReportedCheck c = check("RTX-4090,vllm,unknown,fp8,8,decode_rate_ratio,,,bf16,1,1.21,ratio,thread\n"
                                "RTX-4090,vllm,Qwen3-8B,fp8,8,decode_rate,1,long,bf16,1,2,tok/s,thread\n"
                                "RTX-4090,vllm,Qwen3-8B,fp8,8,decode_rate,max,1024,bf16,1,2,tok/s,thread\n"
                                "RTX-2080,vllm,Qwen3-8B,fp8,8,decode_rate,1,1024,bf16,1,2,tok/s,thread\n"
                                "RTX-4090,vllm,Qwen3-8B,zip,8,decode_rate,1,1024,bf16,1,2,tok/s,thread\n"
                                "RTX-4090,bitdecoding,attention,int4,4,attention_speedup_max,,,fa2-fp16,1,7.5,ratio,paper\n");
  CHECK(c.figures.empty());
  REQUIRE(c.left_out.size() == 6);
  const char* why[] = {"no description of the model unknown", "context \"long\" is no length", "batch \"max\" is no number", "no description of GPU RTX-2080", "no recipe for zip",
                       "attention_speedup_max states no batch and lengths that could be computed"};
  for (std::size_t i = 0; i < 6; ++i) CHECK(c.left_out[i].why == why[i]);
  CHECK_THROWS_WITH(check("a,vllm,Qwen3-8B,fp8,8,decode_rate,1,1024,bf16,zero,2,tok/s,t\n"), "reported line 2: baseline_value is \"zero\", must be a number");
  CHECK_THROWS_AS(check_reported("gpu,method\na,b\n", "reported"), InvalidArgument);
}

TEST_CASE("of the shipped reports four in five go our way, and seven in ten lie inside our intervals", "[unit]") {
  const ReportedCheck c = check_reported(embedded_data("compressed_kv_reported.csv"), "compressed_kv_reported.csv");
  CHECK(c.figures.size() + c.left_out.size() == 46);
  CHECK(c.figures.size() == 26);
  CHECK(c.directions_right() * 10 >= 8 * static_cast<int>(c.figures.size()));
  CHECK(c.inside() * 10 >= 7 * static_cast<int>(c.figures.size()));
  CHECK(to_text(c).find("direction right: ") != std::string::npos);
}
