// Entries against traffic counted by hand on small launches.
#include "core/kernels/attention.hpp"

#include "core/kernels/store.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("decode attention of one span reads keys, values and queries once and writes outputs", "[unit]") {
  const KernelCall c = kernels::DecodeAttention{.sequences = 2, .kv_heads = 3, .q_per_kv = 4, .k_dim = 64, .v_dim = 64, .tokens = 100_tok}.call(5);
  CHECK(c.traffic.read_bytes == 2 * 3 * 100 * (64 + 64) * 2 + 2 * 12 * 64 * 2);
  CHECK(c.traffic.write_bytes == 2 * 12 * 64 * 2);
  CHECK(c.traffic.read_sectors == c.traffic.read_bytes / 32);
  CHECK(c.operations.tensor_flops == 2.0 * 24 * 100 * 128);
  CHECK(c.items == 6);
  CHECK(c.launches == 5);
}

TEST_CASE("a long context writes one float32 partial per span and merges them", "[unit]") {
  // 5,000 tokens: spans of 320, 16 of them.
  const KernelCall c = kernels::DecodeAttention{.kv_heads = 1, .q_per_kv = 1, .k_dim = 128, .v_dim = 128, .tokens = 5000_tok}.call(1);
  CHECK(c.items == 16);
  CHECK(c.traffic.write_bytes == 16 * (128 + 2) * 4);
  const KernelCall m = kernels::SpanMerge{.rows = 1, .v_dim = 128, .tokens = 5000_tok}.call(1);
  CHECK(m.traffic.read_bytes == c.traffic.write_bytes);
  CHECK(kernels::SpanMerge{.rows = 1, .v_dim = 128, .tokens = 200_tok}.call(1).launches == 0);
}

TEST_CASE("coded sides weigh codes and scales, the plain residue its dtype, latent rows once", "[unit]") {
  const CodeFormat int2{.kind = CodeKind::integer, .bits = 2, .axis = GroupAxis::tokens, .group_size = 32, .group_bits = 32};
  CHECK(int2.bits_per_value() == 3.0);
  const KernelCall c = kernels::DecodeAttention{.k_dim = 128, .v_dim = 128, .tokens = 256_tok, .k_plain = 0_tok, .v_plain = 128_tok,
                                                .k_format = int2, .v_format = int2}
                           .call(1);
  const std::int64_t keys = 256 * 128 * 3 / 8, values = 128 * 128 * 3 / 8 + 128 * 128 * 2;
  CHECK(c.traffic.read_bytes == keys + values + 128 * 2);
  CHECK(c.operations.values == 256 * 128 + 128 * 128);
  const KernelCall latent = kernels::DecodeAttention{.q_per_kv = 16, .k_dim = 576, .v_dim = 512, .tokens = 10_tok, .latent = true}.call(1);
  CHECK(latent.traffic.read_bytes == 10 * 576 * 2 + 16 * 576 * 2);
}

TEST_CASE("causal pairs of a prompt: whole, chunked, windowed", "[unit]") {
  kernels::PrefillAttention p{.k_dim = 64, .v_dim = 64, .chunk = 4_tok};
  CHECK(p.pairs() == 10);
  p.past = 6_tok;
  CHECK(p.pairs() == 7 + 8 + 9 + 10);
  p.window = 3_tok;
  CHECK(p.pairs() == 12);
  p.past = 0_tok;
  CHECK(p.pairs() == 1 + 2 + 3 + 3);
}

TEST_CASE("an append writes one row of each side in its format", "[unit]") {
  const KernelCall c = kernels::Append{.sequences = 3, .kv_heads = 2, .k_dim = 64, .v_dim = 64,
                                       .k_format = {.kind = CodeKind::fp8, .bits = 8}, .v_format = CodeFormat::plain(Dtype::bf16)}
                           .call(1);
  CHECK(c.traffic.write_bytes == 6 * (64 + 128));
  CHECK(c.traffic.read_bytes == 6 * 128 * 2);
}
