// What physics says of every prediction, over the whole registry, models and GPUs.
#include <cmath>
#include <cstdlib>
#include <new>
#include <random>

#include "core/errors.hpp"
#include "core/kernels/attention.hpp"
#include "models/registry.hpp"
#include "reference/registry.hpp"
#include "simulator/calibration.hpp"
#include "simulator/closed_form.hpp"
#include "simulator/evaluator.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

[[maybe_unused]] thread_local long allocations = 0;

/// Deployments of a method that this model can have.
std::optional<Evaluator> evaluator(const Method& m, const char* model, const Gpu& gpu) {
  Deployment d{.model = &models::find_model(model), .gpu = gpu, .recipe = Recipe::parse("full")};
  try {
    d.recipe = Recipe::parse(m.slug);
  } catch (const Error&) {
    return std::nullopt;
  }
  if (why_not(d)) return std::nullopt;
  return Evaluator(std::move(d));
}

void check_finite(const StepFigures& f) {
  for (const double x : {f.step_s, f.attention_s, f.matrix_s, f.method_s, f.other_s, f.low_s, f.high_s, f.cache_bytes, f.peak_bytes, f.cache_read_bytes, f.energy_j}) {
    CHECK(std::isfinite(x));
    CHECK(x >= 0);
  }
  CHECK(f.step_s > 0);
  CHECK(f.low_s <= f.step_s);
  CHECK(f.step_s <= f.high_s);
}

}  // namespace

#if !defined(__SANITIZE_ADDRESS__)  // the sanitizer owns new and delete
// Counts what this program allocates; the counter is read around single calls only.
void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

TEST_CASE("a step allocates nothing, but for the few methods whose plan copies the cache shape", "[property]") {
  int checked = 0;
  for (const Method* m : all_methods()) {
    if (m->data_dependent) continue;
    const auto e = evaluator(*m, "llama-3.1-8b", find_gpu("h100"));
    if (!e) continue;
    CAPTURE(m->slug);
    double sum = e->step(Tokens(20000), 4).step_s;
    const long before = allocations;
    sum += e->step(Tokens(20001), 4).step_s;
    const long made = allocations - before;
    if (m->family == Family::baseline || m->family == Family::quantization) {
      CHECK(made == 0);
    } else {
      CHECK(made <= 16);
    }
    CHECK(sum > 0);
    ++checked;
  }
  CHECK(checked >= 1);
}
#endif

TEST_CASE("every figure is finite for every method, extreme sizes included", "[property]") {
  for (const Method* m : all_methods())
    for (const char* model : {"llama-3.1-8b", "gemma-3-270m", "deepseek-v3", "gpt-oss-20b"})
      for (const char* gpu : {"h100", "rtx-3090"}) {
        const auto e = evaluator(*m, model, find_gpu(gpu));
        if (!e) continue;
        CAPTURE(m->slug, model, gpu);
        for (const std::int64_t context : {1, 2, 31, 33, 4097, 131072, 100'000'000})
          for (const int batch : {1, 3, 1000}) check_finite(e->step(Tokens(context), batch));
        CHECK(std::isfinite(e->prefill_s(Tokens(131072), 1)));
        CHECK(e->size_factor(Tokens(32768)) > 0);
        const WorkloadFigures w = e->workload({.prompt = Tokens(4096), .output = Tokens(64)});
        CHECK(std::isfinite(w.requests_per_s));
        CHECK(w.feasible == w.why_not.empty());
      }
}

TEST_CASE("more bandwidth never makes a step slower, more of anything never makes it cheaper in memory", "[property]") {
  std::mt19937 random(20260101);
  for (const Method* m : all_methods()) {
    const auto slow = evaluator(*m, "llama-3.1-8b", find_gpu("a100"));
    if (!slow) continue;
    for (const char* change : {"a100:hbm_bandwidth=2.1TB/s", "a100:hbm_bandwidth=10TB/s", "a100:bf16_flops=600TFLOPS", "a100:fp32_flops=40TFLOPS",
                               "a100:clock=2GHz", "a100:launch_graph=0.5us"}) {
      const auto fast = evaluator(*m, "llama-3.1-8b", parse_gpu(change));
      REQUIRE(fast);
      for (int draw = 0; draw < 40; ++draw) {
        const Tokens context(1 + static_cast<std::int64_t>(random() % 200000));
        const int batch = 1 + static_cast<int>(random() % 256);
        CAPTURE(m->slug, change, context.value, batch);
        CHECK(fast->step(context, batch).step_s <= slow->step(context, batch).step_s);
      }
    }
    for (int draw = 0; draw < 200; ++draw) {
      const Tokens context(1 + static_cast<std::int64_t>(random() % 200000));
      const int batch = 1 + static_cast<int>(random() % 256);
      CAPTURE(m->slug, context.value, batch);
      const StepFigures f = slow->step(context, batch), more = slow->step(context, batch + 1), twice = slow->step(context + context, batch);
      CHECK(more.step_s >= f.step_s);
      CHECK(slow->step(context, 2 * batch).step_s >= f.step_s);
      CHECK(more.cache_bytes >= f.cache_bytes);
      CHECK(more.peak_bytes >= f.peak_bytes);
      // Methods with a budget may hold less of a longer context: they compress in bursts.
      if (m->family == Family::baseline || m->family == Family::quantization) CHECK(twice.peak_bytes >= f.peak_bytes);
    }
  }
}

TEST_CASE("without compression a longer context is never faster by more than the span rule's partial results", "[property]") {
  const auto e = evaluator(find_method("full"), "llama-3.1-8b", find_gpu("h100"));
  std::mt19937 random(7);
  for (int draw = 0; draw < 500; ++draw) {
    const Tokens context(1 + static_cast<std::int64_t>(random() % 100000)), longer = context + Tokens(1 + static_cast<std::int64_t>(random() % 5000));
    const int batch = 1 + static_cast<int>(random() % 64);
    CAPTURE(context.value, longer.value, batch);
    CHECK(e->step(longer, batch).step_s >= e->step(context, batch).step_s * 0.98);
  }
}

TEST_CASE("at prompt 128K, output 256, leaving prefill alone is never credited more than Amdahl allows", "[property]") {
  int checked = 0;
  for (const char* gpu : {"h100", "h200", "b200", "rtx-pro-6000", "a100"})
    for (const char* model : {"llama-3.1-8b", "qwen2.5-7b", "yi-9b-200k"}) {
      const Workload w{.prompt = Tokens(131072), .output = Tokens(256)};
      const auto full = evaluator(find_method("full"), model, find_gpu(gpu));
      REQUIRE(full);
      const WorkloadFigures base = full->workload(w);
      if (!base.feasible) continue;
      const double prefill = base.prefill_s, decode = 1.0 / base.requests_per_s - prefill;
      REQUIRE(decode > 0);
      for (const Method* m : all_methods()) {
        const auto e = evaluator(*m, model, find_gpu(gpu));
        if (!e) continue;
        const WorkloadFigures f = e->workload(w);
        if (!f.feasible || f.prefill_s < prefill) continue;  // a method that makes prefill cheaper has another bound
        CAPTURE(gpu, model, m->slug);
        CHECK(f.requests_per_s / base.requests_per_s <= (prefill + decode) / prefill * (1 + 1e-12));
        ++checked;
      }
    }
  CHECK(checked >= 10);
}

TEST_CASE("prefix hits are worth nothing to a method that cannot share prefixes", "[property]") {
  for (const Method* m : all_methods()) {
    const auto e = evaluator(*m, "llama-3.1-8b", find_gpu("h100"));
    if (!e) continue;
    CAPTURE(m->slug);
    const double cold = e->workload({.prompt = Tokens(16384), .output = Tokens(64), .concurrency = 1}).prefill_s;
    const double warm = e->workload({.prompt = Tokens(16384), .output = Tokens(64), .prefix_hit = 0.8, .concurrency = 1}).prefill_s;
    if (m->serving.prefix_cache.works == Works::no) {
      CHECK(warm == cold);
    } else {
      CHECK(warm < cold);
    }
  }
}

TEST_CASE("no batch is faster than a smaller one, whatever kernel cuts it", "[property]") {
  for (const Profile& profile : shipped_calibration().profiles) {
    if (profile.family != KernelFamily::decode) continue;
    for (const char* gpu : {"h100-sxm", "a100", "l40s", "b200"})
      for (const int kv_heads : {1, 2, 8, 32}) {
        const Machine machine = machine_of(find_gpu(gpu));
        const GpuConstants constants = shipped_calibration().constants_of(find_gpu(gpu));
        const auto seconds = [&](int batch, std::int64_t context) {
          const kernels::DecodeAttention call{.sequences = batch, .kv_heads = kv_heads, .q_per_kv = 4, .k_dim = 128, .v_dim = 128, .tokens = Tokens(context)};
          return decode_terms(machine, constants, profile, decode_work(call.call(1)), kCold, 32).seconds();
        };
        CAPTURE(profile.name, gpu, kv_heads);
        for (const std::int64_t context : {130, 1024, 4096, 5000, 20480}) {
          double before = 0;
          for (int batch = 1; batch <= 256; ++batch) {
            const double now = seconds(batch, context);
            CAPTURE(context, batch, now / before);
            CHECK(now >= before * (1 - 1e-9));
            before = now;
          }
        }
      }
  }
}
