#include "reference/primitives/denoising.hpp"

#include "core/kernels/attention.hpp"
#include "core/kernels/store.hpp"

namespace kvatlas {

void add_denoising_pass(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, std::int64_t queries, Tokens tokens, double launches) {
  const CodeFormat plain = CodeFormat::plain(dtype);
  plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = dtype,
                           .k_format = plain, .v_format = plain, .rows = queries}
               .call(launches));
  // A long run of queries goes in chunks. Each sees the whole text: pairs over those of a causal chunk at its end.
  constexpr std::int64_t kChunk = 4096;
  const auto attend = [&](std::int64_t chunk, double times) {
    const double n = static_cast<double>(chunk), past = static_cast<double>(tokens.value - chunk);
    plan.add(kernels::PrefillAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim, .v_dim = c.v_dim,
                                       .dtype = dtype, .past = Tokens(tokens.value - chunk), .chunk = Tokens(chunk),
                                       .density = n * (n + past) / (n * past + n * (n + 1) / 2)}
                 .call(times));
  };
  if (queries >= kChunk) attend(kChunk, launches * static_cast<double>(queries / kChunk));
  if (queries % kChunk > 0) attend(queries % kChunk, launches);
}

}  // namespace kvatlas
