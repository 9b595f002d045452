#include "simulator/fit.hpp"

#include <cmath>
#include <sstream>

#include "core/errors.hpp"
#include "simulator/validate.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

constexpr const char* kHeader = "gpu,source,framework,kernel,heads,kv_heads,head_dim,window,batch,context,q_dtype,kv_dtype,measured_ms,l2x\n";

std::vector<Measurement> parsed(const std::string& text) {
  return read_measurements(text, "timings");
}

/// Rows of a grid of shapes on one GPU, timed by the closed form itself.
std::vector<Measurement> made_rows(const Calibration& truth) {
  std::string text = kHeader;
  for (const int kv_heads : {1, 2, 4, 8})
    for (const int batch : {1, 4, 16, 64, 256})
      for (const int context : {128, 1024, 4096, 16384})
        text += cat("H100-SXM-80GB,made,vllm-1.0,vllm_flash_attn_fa3,", kv_heads * 4, ",", kv_heads, ",128,0,", batch, ",", context, ",bf16,bf16,1,",
                    context * 512.0 * batch * kv_heads / 50e6, "\n");
  std::vector<Measurement> rows = parsed(text);
  for (Measurement& m : rows) m.seconds = predict(truth, m).seconds;
  return rows;
}

}  // namespace

TEST_CASE("rows become work: bytes, groups, subsets", "[unit]") {
  const auto rows = parsed(cat("# comment\n", kHeader, "H100-SXM-80GB,aic,vllm-0.24.0,vllm_flash_attn_fa3,32,8,128,0,64,8192,bf16,bf16,0.7,40\n",
                               "H100-SXM-80GB,aic,vllm-0.24.0,vllm_flash_attn_fa3,32,8,128,0,1,8192,bf16,fp8,0.02,0.6\n",
                               "L40S,aic,sglang-0.5.14,flashinfer,32,8,128,1024,64,8192,bf16,bf16,0.2,1.4\n"));
  REQUIRE(rows.size() == 3);
  CHECK(rows[0].bytes == 64.0 * 8192 * 8 * 256 * 2);
  CHECK(rows[0].framework == "vllm");
  CHECK(rows[0].group == 4);
  CHECK(rows[0].subset == Subset::cold);
  CHECK(rows[1].bits == 8);
  CHECK(rows[1].subset == Subset::overhead);
  CHECK(rows[2].bytes == 64.0 * 1024 * 8 * 256 * 2);  // the window alone is read
  CHECK(rows[2].subset == Subset::warm);
  CHECK(parsed("gpu,framework,gemm_dtype,m,n,k,measured_ms\nH100-SXM-80GB,trtllm-1,fp8,8,4096,4096,0.02\n")[0].speedup == Approx(2).epsilon(0.01));
  CHECK(parsed("gpu,framework,kernel,heads,kv_heads,head_dim,batch,seq_len,q_dtype,kv_dtype,measured_ms\nL40S,a,b,8,8,128,1,1024,bf16,bf16,1\n")[0].flops ==
        Approx(4.0 * 8 * 128 * 1024 * 1025 / 2));
}

TEST_CASE("rows of collectives count messages in elements of two bytes, and what each rank sends", "[unit]") {
  const char* header = "gpu,source,lib,op,gpus,message_elems_or_bytes,measured_ms\n";
  const auto rows = parsed(cat(header, "H100-SXM-80GB,aic,nccl-2.29.2,all_reduce,8,1048576,0.04\nL40S,aic,nccl-2.27.3,all_gather,2,1024,0.006\n",
                               "B200-SXM-180GB,aic,vllm-0.24.0,custom_allreduce:vLLM_custom_eager,2,128,0.02\n"));
  REQUIRE(rows.size() == 3);
  CHECK(rows[0].bytes == 2.0 * 7 / 8 * 2 * 1048576);
  CHECK(rows[0].bytes_per_s == 450e9);
  CHECK(rows[0].kernel == "nvlink:all_reduce");
  CHECK(rows[1].bytes == 1024);
  CHECK(rows[1].kernel == "pcie:all_gather");
  CHECK(rows[2].kernel == "nvlink:all_reduce_eager");
  CHECK(predict(shipped_calibration(), rows[0]).profile == "nccl_all_reduce_nvlink");
  CHECK_THROWS_AS(parsed(cat(header, "L40S,aic,nccl-2,broadcast,2,1024,1\n")), InvalidArgument);
  CHECK_THROWS_AS(parsed(cat(header, "L40S,aic,nccl-2,all_gather,1,1024,1\n")), InvalidArgument);
}

TEST_CASE("rows over latent caches read one row of latent and rope values for all heads", "[unit]") {
  const char* header = "gpu,source,framework,kernel,heads,latent_dim,rope_dim,batch,context,q_dtype,kv_dtype,measured_ms\n";
  const auto rows = parsed(cat(header, "H100-SXM-80GB,aic,trtllm-1,default,128,512,64,32,8192,bf16,bf16,0.36\nH100-SXM-80GB,aic,trtllm-1,default,16,512,64,1,512,bf16,fp8,0.01\n"));
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].family == KernelFamily::latent);
  CHECK(rows[0].bytes == 32.0 * 8192 * 576 * 2);
  CHECK(rows[0].flops == 2.0 * 128 * 32 * 8192 * (576 + 512));
  CHECK(rows[0].subset == Subset::cold);
  CHECK(rows[1].subset == Subset::overhead);
  CHECK(predict(shipped_calibration(), rows[0]).profile == "mla_trtllm_sm90");
  CHECK(predict(shipped_calibration(), rows[1]).profile == "mla_trtllm_sm90_fp8");
}

TEST_CASE("a collective by hand: two protocols, of which the faster one runs", "[unit]") {
  const Machine machine{.link = 100e9};
  const LinkConstants link{.gpu = "toy", .nvlink = true, .c = {2, 0.5, 0.8}};
  const Profile profile{.name = "toy", .family = KernelFamily::collective, .c = {5e-6, 1e-6, 4, 20e-6, 1, 2e-6}};
  const auto terms = [&](double ranks, double bytes) { return collective_terms(machine, link, profile, {.ranks = ranks, .message = bytes, .rounds = 2}); };
  CHECK(terms(2, 8).launch == Approx(2 * (5e-6 + 1e-6)));
  CHECK(terms(2, 8).share == Approx(0.5));
  CHECK(terms(8, 8).share == Approx(0.8));
  CHECK(terms(16, 8).share == Approx(0.8));
  CHECK(terms(4, 8).share == Approx(1 / (1.0 / 3 / 0.5 + 2.0 / 3 / 0.8)));
  CHECK(terms(8, 1e3).transfer == Approx(4 * 1750 / 80e9).epsilon(0.01));                             // at once
  CHECK(terms(8, 1e9).transfer == Approx(2 * (20e-6 + 7 * 2e-6) + 1.75e9 / 80e9).epsilon(0.01));      // pipelined
  double before = 0;
  for (double bytes = 256; bytes < 1e9; bytes *= 1.5) {
    const double now = terms(8, bytes).seconds();
    CHECK(now > before);
    before = now;
  }
}

TEST_CASE("a broken file is refused by line and field", "[unit]") {
  const auto sentence = [](const std::string& text) -> std::string {
    try {
      parsed(text);
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "accepted";
  };
  CHECK(sentence("") == "timings is empty, must have a header line");
  CHECK(sentence("gpu,heads\n") == "timings: column measured_ms is missing");
  CHECK(sentence("gpu,measured_ms,heads\n") == "timings: column kv_heads is missing");
  CHECK(sentence(cat(kHeader, "h100,1\n")) == "timings line 2 has 2 cells, must have 14");
  CHECK(sentence(cat(kHeader, "h100,a,b,c,32,8,128,0,64,8192,bf16,bf16,fast,40\n")) == "timings line 2: measured_ms is \"fast\", must be a number");
  CHECK(sentence(cat(kHeader, "h10,a,b,c,32,8,128,0,64,8192,bf16,bf16,1,40\n")) == "timings line 2: gpu: \"h10\": unknown GPU; did you mean \"h100\"?");
  CHECK(sentence(cat(kHeader, "h100,a,b,c,33,8,128,0,64,8192,bf16,bf16,1,40\n")) == "timings line 2: heads is \"33\", must be a multiple of kv_heads (8)");
  CHECK(sentence(cat(kHeader, "h100,a,b,c,32,0.5,128,0,64,8192,bf16,bf16,1,40\n")) == "timings line 2: kv_heads is \"0.5\", must be a whole number from 1 to 67108864");
  CHECK(sentence(cat(kHeader, "h100,a,b,c,32,8,128,0,1e12,8192,bf16,bf16,1,40\n")) == "timings line 2: batch is \"1e12\", must be a whole number from 1 to 67108864");
  CHECK(sentence(cat(kHeader, "h100,a,b,c,32,8,128,0,64,8192,bf16,int4,1,40\n")) == "timings line 2: kv_dtype is \"int4\", must be bf16 or fp8");
  CHECK(sentence(kHeader) == "timings has no rows below its header");
  CHECK(sentence(cat("# published\n", kHeader, "\nh100,a,b,c,32,8,128,0,64,8192,bf16,bf16,1,40\n")) == "accepted");
}

TEST_CASE("a fit finds the constants that made the rows, and one outlier does not move it", "[unit]") {
  Calibration truth = shipped_calibration();
  truth.gpus[static_cast<std::size_t>(truth.find_gpu("h100-sxm"))].c = {0.8, 4, 0.6, 1.1};
  truth.profiles[static_cast<std::size_t>(truth.find_profile("fa3_vllm"))].c = {12e-6, 2e-6, 1.4, 0.3, 0.9, 3e-6};
  std::vector<Measurement> rows = made_rows(truth);
  rows[37].seconds *= 20;
  const Calibration fitted = fit(shipped_calibration(), rows);
  CHECK(fitted.gpus[static_cast<std::size_t>(fitted.find_gpu("h100-sxm"))].c[bandwidth_share] == Approx(0.8).epsilon(0.02));
  CHECK(fitted.profiles[static_cast<std::size_t>(fitted.find_profile("fa3_vllm"))].c[decode_launch] == Approx(12e-6).epsilon(0.05));
  CHECK(fitted.gpus[static_cast<std::size_t>(fitted.find_gpu("l40s"))].c == shipped_calibration().gpus[static_cast<std::size_t>(fitted.find_gpu("l40s"))].c);
  std::vector<double> errors;
  for (const Measurement& m : rows) errors.push_back(std::fabs(predict(fitted, m).seconds / m.seconds - 1));
  CHECK(error_figures(errors).median < 0.01);
}

TEST_CASE("a kernel and a GPU that nobody knows are added", "[unit]") {
  std::vector<Measurement> rows = made_rows(shipped_calibration());
  for (Measurement& m : rows) m.framework = "own", m.kernel = "mine", m.gpu = &find_gpu("h200"), m.seconds *= 1.1;
  const Calibration fitted = fit(shipped_calibration(), rows);
  CHECK(fitted.find_gpu("h200") >= 0);
  const Prediction p = predict(fitted, rows[70]);
  CHECK(p.profile == "decode:own:mine:16");
  CHECK(p.evidence == Evidence::fitted);
  CHECK(p.seconds == Approx(rows[70].seconds).epsilon(0.1));
  CHECK(predict(shipped_calibration(), rows[70]).evidence == Evidence::other_gpu);
}

TEST_CASE("folds leave out whole shapes, and a left-out GPU speaks only through its kin", "[unit]") {
  const std::vector<Measurement> rows = made_rows(shipped_calibration());
  const CrossValidation shapes = cross_validate(shipped_calibration(), rows, LeaveOut::shapes);
  CHECK(shapes.folds.size() == 4);
  std::int64_t n = 0;
  for (const Fold& f : shapes.folds) n += f.errors.rows;
  CHECK(n == static_cast<std::int64_t>(rows.size()));
  CHECK(error_figures({shapes.folds[0].errors.median}).median < 0.1);
  CHECK_THROWS_AS(cross_validate(shipped_calibration(), rows, LeaveOut::gpu), InvalidArgument);  // one GPU alone
}

TEST_CASE("the shipped constants beat both rooflines on every GPU of the shipped sample", "[unit]") {
  std::vector<std::string> skipped;
  const std::vector<Measurement> rows = load_measurements({}, skipped);
  CHECK(rows.size() <= 500);
  const ValidationReport report = validate(shipped_calibration(), rows, false);
  int gpus = 0;
  for (const ValidationRow& r : report.rows) {
    if (r.kind != "decode_attention" || r.profile != "*" || r.subset != "cold") continue;
    CAPTURE(r.gpu);
    ++gpus;
    CHECK(r.ours.mean < 0.7 * r.roofline.mean);
    if (r.gpu != "*") continue;
    CHECK(r.ours.mean < 0.10);
    CHECK(r.ours.median < 0.04);
    CHECK(r.ours.mean < 0.6 * r.scaled.mean);
    CHECK(r.coverage > 0.7);
  }
  CHECK(gpus == 9);
  int links = 0;
  for (const ValidationRow& r : report.rows) {
    if (r.kind != "comm" || r.profile != "*" || r.subset != "all") continue;
    CAPTURE(r.gpu);
    ++links;
    CHECK(r.ours.mean < 0.5 * r.roofline.mean);
    if (r.gpu == "*") CHECK(r.ours.median < 0.15);
  }
  CHECK(links == 6);
  CHECK(report.worst.size() <= 50);
  CHECK(to_text(report).find("fitted in all") != std::string::npos);
}

TEST_CASE("timed products find their weights in L2 where the copies they go through fit", "[unit]") {
  const auto fill = [](const char* shape) {
    return read_measurements(cat("gpu,framework,gemm_dtype,m,n,k,measured_ms\nL40S,trtllm,bf16,1,", shape, ",1\n"), "timings").at(0).l2_fill;
  };
  CHECK(fill("8192,2048") == Approx(1.0));                       // 32 MiB of 96: three copies
  CHECK(fill("12288,3072") == Approx(2 * 72.0 / 96));            // 72 MiB: two copies
  CHECK(fill("4096,1024") == Approx(5 * 8.0 / 96));              // never more than five
  CHECK(fill("16384,16384") == Approx(512.0 / 96));
}
