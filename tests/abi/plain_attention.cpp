// A user's kernel as `kvatlas verify --case full/caseN --library FILE` runs one: attention over all tokens as textbooks write it, in
// double precision, with library functions. Value rows are the reference's bits, outputs are near them and not equal.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "answers/kvatlas_kernel.h"

namespace {

const kvatlas_array* find(const kvatlas_case& one, const char* name) {
  for (int i = 0; i < one.input_count; ++i)
    if (std::strcmp(one.inputs[i].name, name) == 0) return &one.inputs[i];
  return nullptr;
}

std::vector<double> rotated(const kvatlas_case& one, const float* row, std::int64_t position) {
  std::vector<double> out(row, row + one.k_dim);
  for (int pair = 0; pair < one.rotary_dim / 2; ++pair) {
    const double angle = static_cast<double>(position) * std::pow(one.rope_base, -2.0 * pair / one.rotary_dim);
    const auto a = static_cast<std::size_t>(one.rope_interleaved != 0 ? 2 * pair : pair), b = static_cast<std::size_t>(one.rope_interleaved != 0 ? 2 * pair + 1 : pair + one.rotary_dim / 2);
    const double x = out[a], y = out[b];
    out[a] = x * std::cos(angle) - y * std::sin(angle);
    out[b] = x * std::sin(angle) + y * std::cos(angle);
  }
  return out;
}

}  // namespace

extern "C" int kvatlas_run_case(const kvatlas_case* one, const kvatlas_results* results) {
  const kvatlas_array *q = find(*one, "q"), *k = find(*one, "k"), *v = find(*one, "v");
  if (one->abi != KVATLAS_KERNEL_ABI || q == nullptr || k == nullptr || v == nullptr) return 1;
  if (std::strcmp(one->method, "full") != 0 || std::strcmp(one->dtype, "f32") != 0) return 2;  // nothing else is rounded or dropped here
  const std::int64_t tokens = one->prompt + one->decode, dims[4] = {one->layers, one->q_heads, tokens, one->v_dim};
  std::vector<float> out;
  for (std::int64_t layer = 0; layer < one->layers; ++layer)
    for (std::int64_t head = 0; head < one->q_heads; ++head)
      for (std::int64_t t = 0; t < tokens; ++t) {
        const std::int64_t kv = layer * one->kv_heads + head / (one->q_heads / one->kv_heads);
        const auto query = rotated(*one, q->values + ((layer * one->q_heads + head) * tokens + t) * one->k_dim, t);
        std::vector<double> p, sum(static_cast<std::size_t>(one->v_dim), 0.0);
        double largest = -INFINITY, total = 0.0;
        for (std::int64_t s = 0; s <= t; ++s) {
          const auto key = rotated(*one, k->values + (kv * tokens + s) * one->k_dim, s);
          double dot = 0.0;
          for (std::size_t c = 0; c < query.size(); ++c) dot += query[c] * key[c];
          p.push_back(dot / std::sqrt(static_cast<double>(one->k_dim)));
          largest = std::fmax(largest, p.back());
        }
        for (std::int64_t s = 0; s <= t; ++s) {
          const double weight = std::exp(p[static_cast<std::size_t>(s)] - largest);
          total += weight;
          for (std::int64_t c = 0; c < one->v_dim; ++c) sum[static_cast<std::size_t>(c)] += weight * static_cast<double>(v->values[(kv * tokens + s) * one->v_dim + c]);
        }
        for (const double x : sum) out.push_back(static_cast<float>(x / total));
      }
  if (results->array(results->state, "out", "F32", out.data(), dims, 4) != 0) return 3;
  for (std::int64_t layer = 0; layer < one->layers; ++layer)
    for (std::int64_t head = 0; head < one->kv_heads; ++head)
      for (const char* stage : {"prompt", "end"}) {
        char name[64];
        std::snprintf(name, sizeof name, "layer%d/v_rows/head%d", static_cast<int>(layer), static_cast<int>(head));
        const std::int64_t rows = std::strcmp(stage, "prompt") == 0 ? one->prompt : tokens;
        if (results->buffer(results->state, stage, name, v->values + (layer * one->kv_heads + head) * tokens * one->v_dim, static_cast<std::size_t>(rows * one->v_dim) * sizeof(float)) != 0) return 4;
      }
  return 0;
}
