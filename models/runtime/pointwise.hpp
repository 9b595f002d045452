// The elementwise steps of a transformer layer in canonical arithmetic: norms, gated activations, log-softmax.
#pragma once

#include <cstdint>
#include <span>

namespace kvatlas::models {

/// Of the gated FFN: silu(z) = z / (1 + e^-z); gelu_tanh(z) = z / (1 + e^(-2u)), u = sqrt(2 / pi) (z + 0.044715 z^3), which is
/// z (1 + tanh u) / 2.
enum class Activation : std::uint8_t { silu, gelu_tanh };

/// to = from * r * weight, r = 1 / sqrt(mean(from^2) + eps); the squares are added as num::lane_dot does. In place is allowed.
void rms_norm(std::span<const float> from, std::span<const float> weight, float eps, std::span<float> to);

/// gate[i] = activation(gate[i]) * up[i].
void gate(Activation activation, std::span<float> gate, std::span<const float> up);

/// log of the sum of e^x, natural units. Blocks of 4,096 exponentials are added as num::lane_sum does, blocks in float64.
double log_sum_exp(std::span<const float> x);

}  // namespace kvatlas::models
