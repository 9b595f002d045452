#include "simulator/kernel_model.hpp"

#include <cmath>

#include "core/errors.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/store.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

// Round figures, so that the example can be followed by hand.
Gpu toy() {
  return parse_gpu(
      "h100:sm_count=100,clock=1GHz,hbm_bandwidth=1TB/s,attention_fraction=0.8,bf16_flops=1000TFLOPS,fp32_flops=100TFLOPS,attention_floor=10us,"
      "launch_graph=1us");
}

kernels::DecodeAttention llama_layer(int sequences, std::int64_t tokens) {
  return {.sequences = sequences, .kv_heads = 8, .q_per_kv = 4, .k_dim = 128, .v_dim = 128, .tokens = Tokens(tokens)};
}

}  // namespace

TEST_CASE("a decode-attention call is launch, split and the smooth maximum of its terms, worked by hand", "[unit]") {
  // 16 sequences of 4,096 tokens, 8 kv heads of 128, 4 query heads each, bf16. The cache is 268,435,456 B, the queries 131,072 B.
  // Two items an SM: floor(2 x 100 / 128 heads) = 1, so no cut: 128 items on 100 SMs, the busiest runs 2.
  const Profile profile{.name = "toy", .family = KernelFamily::decode, .split = SplitRule::floor, .waves = 2, .tile = 64, .query_tile = 64,
                        .c = {10e-6, 2e-6, 1.5, 0.5, 1.0, 3e-6}};
  const GpuConstants g{.gpu = "toy", .compute_capability = "9.0", .c = {0.8, 4, 0.5, 1.0}};
  const Machine m{.sms = 100, .clock = 1e9, .bandwidth = 1e12, .l2_bytes = 50e6, .tensor = 1e15, .achieved = 0.8e15, .vector = 1e14};
  const DecodeWork w = decode_work(llama_layer(16, 4096).call(1));
  REQUIRE(w.heads == 128);
  REQUIRE(w.bytes == 268435456.0 + 131072.0);
  const DecodeTerms t = decode_terms(m, g, profile, w, kCold, 32);
  CHECK(t.load == 2);
  CHECK(t.split == 0);
  CHECK(t.bytes == Approx((268435456.0 + 2 * 131072.0) / 0.8e12));          // 335.9 us, outputs as large as queries
  CHECK(t.starts == Approx(4e-6));
  CHECK(t.items == Approx(2 * (2e-6 + w.bytes / 128 / 1.5e10)));            // one SM draws 1.5 of its hundredth: 283.8 us
  CHECK(t.values == Approx(2 * 4096 * 256 / 32e9));                         // 65.5 us
  CHECK(t.tensor == Approx(2.0 * 512 * 4096 * 256 / 0.5e15));
  CHECK(t.seconds() == Approx(10e-6 + 335.9e-6 * std::pow(1 + std::pow(283.8 / 335.9, 4) + std::pow(65.5 / 335.9, 4), 0.25)).epsilon(1e-3));

  SECTION("a single sequence is cut so that the SMs have work, and pays the reduction") {
    const DecodeTerms one = decode_terms(m, g, profile, decode_work(llama_layer(1, 4096).call(1)), kCold, 32);
    CHECK(one.item_entries == 192);  // 200 / 8 heads = 25 items of 64 blocks: 3 blocks each, 22 items
    CHECK(one.load == 2);            // 8 x 22 = 176 items
    CHECK(one.split == 3e-6);
  }
  SECTION("data that stay in L2 are read at its speed") {
    const DecodeWork small = decode_work(llama_layer(1, 4096).call(1));
    const DecodeTerms warm = decode_terms(m, g, profile, small, 0.3, 32), cold = decode_terms(m, g, profile, small, kCold, 32);
    CHECK(warm.bytes == Approx(cold.bytes * 0.8 / 4));
    CHECK(decode_terms(m, g, profile, small, 0.81, 32).bytes == Approx(cold.bytes));  // above 1.6 x 0.5
  }
}

TEST_CASE("decode attention never gets faster by more bytes, less bandwidth or a slower clock", "[unit]") {
  const auto time = [](const std::string& gpu, int sequences, std::int64_t tokens) {
    return KernelModel(parse_gpu(gpu), true, 0, false).time(llama_layer(sequences, tokens).call(1)).ideal_s;
  };
  for (const char* gpu : {"h100", "a100", "b200", "l40s", "rtx-pro-6000-bw"})
    for (const int sequences : {1, 7, 64, 300})
      for (const std::int64_t tokens : {100, 3000, 40000}) {
        CAPTURE(gpu, sequences, tokens);
        const double base = time(gpu, sequences, tokens);
        CHECK(time(cat(gpu, ":hbm_bandwidth=900GB/s"), sequences, tokens) >= time(cat(gpu, ":hbm_bandwidth=1TB/s"), sequences, tokens));
        CHECK(time(cat(gpu, ":clock=1GHz"), sequences, tokens) >= time(cat(gpu, ":clock=1.1GHz"), sequences, tokens));
        CHECK(time(gpu, sequences, 2 * tokens) > base);
        CHECK(time(gpu, 2 * sequences, tokens) >= base);
      }
}

TEST_CASE("one short sequence is bound by latency, a large batch by memory", "[unit]") {
  const KernelModel model(toy(), true, 0, false);
  CHECK(model.time(llama_layer(1, 64).call(1)).bound == Bound::latency);
  CHECK(model.time(llama_layer(64, 8192).call(1)).bound == Bound::memory);
}

TEST_CASE("engines run their own attention kernels", "[unit]") {
  const KernelCall call = llama_layer(64, 8192).call(1);
  const auto name = [&](const char* gpu, const char* engine) {
    return KernelModel(find_gpu(gpu), true, 0, false, engine).decode_profile(call).name;
  };
  CHECK(name("h100", "vllm") == "fa3_vllm");
  CHECK(name("h100", "trtllm") == "trtllm_xqa_sm90");
  CHECK(name("h200", "sglang") == "fa3_sglang");
  CHECK(name("l40s", "trtllm") == "trtllm_xqa");
  CHECK(name("rtx-4090", "vllm") == "fa2");
  CHECK(name("b200", "transformers") == "trtllm_gen_trtllm");  // nobody measured it there: the first of that GPU
}

TEST_CASE("packed integers are unpacked at a rate; the released class pays once for each query head", "[unit]") {
  kernels::DecodeAttention a = llama_layer(16, 4096);
  a.k_format = a.v_format = {.kind = CodeKind::integer, .bits = 4, .axis = GroupAxis::channels, .group_size = 32, .group_bits = 32};
  const KernelModel model(toy(), true, 0, false);
  const KernelTerms t = model.terms(a.call(1));
  // fa3_vllm aims at 4 items an SM: ceil(400 / 128 heads) = 4 items of 4 tiles of 256; the busiest of 100 SMs runs ceil(512 / 100) = 6 of
  // them, 6 x 1,024 entries of 256 values at 40 a clock.
  CHECK(t.value_s == Approx(6 * 1024 * 256 / 40e9));
  CHECK(t.released_value_s == Approx(t.value_s * 4 * 40 / 4));  // 4 query heads, 4 pairs a clock
  const KernelTime time = model.time(a.call(1));
  CHECK(time.uncalibrated);
  CHECK(time.released_s > 5 * time.ideal_s);
  CHECK(time.ideal_s < model.time(llama_layer(16, 4096).call(1)).ideal_s);
}

TEST_CASE("a warm cache runs at L2 speed only when it is asked for and fits", "[unit]") {
  const KernelCall small = llama_layer(4, 1024).call(1), large = llama_layer(64, 4096).call(1);
  const KernelModel cold(toy(), true, 0, false), warm(toy(), true, 0, true);
  CHECK(warm.time(small).ideal_s < cold.time(small).ideal_s);
  CHECK(warm.time(large).ideal_s == cold.time(large).ideal_s);
}

TEST_CASE("without graphs each launch costs the engine's host time", "[unit]") {
  const KernelCall append = kernels::Append{.sequences = 1, .kv_heads = 8, .k_dim = 128, .v_dim = 128}.call(1);
  const double graph = KernelModel(toy(), true, 0, false).time(append).ideal_s, eager = KernelModel(toy(), false, 10e-6, false).time(append).ideal_s;
  CHECK(eager - graph == Approx(9e-6));
}

TEST_CASE("a transfer takes its submissions or its bytes over the link, whichever is longer", "[unit]") {
  const KernelModel model(parse_gpu("h100:pcie=50GB/s"), true, 0, false);
  CHECK(model.terms(kernels::Transfer{.copies = 100, .bytes = 1000}.call(1)).link_s == Approx(600e-6));
  CHECK(model.terms(kernels::Transfer{.copies = 1, .bytes = 40'000'000}.call(1)).link_s == Approx(1e-3));
  CHECK(model.time(kernels::Transfer{.copies = 1, .bytes = 1}.call(1)).bound == Bound::link);
}

TEST_CASE("the formula of a call names every term with its number", "[unit]") {
  const std::string line = kernel_formula(KernelModel(toy(), true, 0, false), llama_layer(16, 4096).call(32));
  CAPTURE(line);
  CHECK(line.find("decode_attention = 32 x (floor 10.00 us") == 0);
  // Cache and queries, and the partial rows of 4 items a head, written and read once: 512 x 4 x 130 x 8 B.
  CHECK(line.find("270696448 B / 800.0 GB/s = 338.37 us") != std::string::npos);
  CHECK(line.find("profile fa3_vllm") != std::string::npos);
  CHECK(line.find("bound by memory") != std::string::npos);
}
