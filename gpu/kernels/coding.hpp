// Codes and their values, one at a time: what a kernel computes for each format of core/kernels/kernel_format.hpp, in the
// order of operations that reference/primitives/group_quantizer.hpp states. Conversions come from the context where a GPU
// has an instruction of the same bits.
#pragma once

#include <cstdint>

#include "core/arith.hpp"
#include "core/formats/bf16.hpp"
#include "core/formats/e8m0.hpp"
#include "core/formats/fp4.hpp"
#include "core/formats/fp8.hpp"
#include "core/kernels/kernel_format.hpp"
#include "core/layer_graph.hpp"
#include "gpu/simt/site.hpp"

namespace kvatlas::gpu {

using kernels::CodeLayout;
using kernels::CodeScheme;
using kernels::KernelFormat;

template <class C, Dtype D>
KV_KERNEL inline float load16(std::uint16_t bits) {
  if constexpr (D == Dtype::bf16) return num::decode_bf16(bits);
  else return C::half_to_float(bits);
}
template <class C, Dtype D>
KV_KERNEL inline std::uint16_t store16(float x) {
  if constexpr (D == Dtype::bf16) return num::encode_bf16(x);
  else return C::float_to_half(x);
}
template <class C>
KV_KERNEL inline float round_half(float x) {
  return C::half_to_float(C::float_to_half(x));
}

/// Value of an e4m3 code that is no NaN: its bits are those of a half 2^8 times smaller.
template <class C>
KV_KERNEL inline float e4m3_value(std::uint32_t code) {
  return C::half_to_float(static_cast<std::uint16_t>(((code & 0x80U) << 8) | ((code & 0x7FU) << 7))) * 0x1p8F;
}
/// Value of an e2m1 code: its bits are those of a half 2^14 times smaller.
template <class C>
KV_KERNEL inline float e2m1_value(std::uint32_t code) {
  return C::half_to_float(static_cast<std::uint16_t>(((code & 0x8U) << 12) | ((code & 0x7U) << 9))) * 0x1p14F;
}

/// What codes of a group are made from. `stored_scale` and `stored_zero` are the bits that memory holds.
struct GroupCoding {
  float scale = 0.0F;    // divisor of a value; 0: every code is 0
  float inverse = 0.0F;  // factor in its place where the format multiplies
  float zero = 0.0F;
  std::uint32_t stored_scale = 0, stored_zero = 0;
};

/// The coding of a group whose extremes are low and high (as inputs of the format); head is the head's scale.
template <class C, KernelFormat F>
KV_KERNEL inline GroupCoding group_coding(float low, float high, float head) {
  GroupCoding g;
  const float largest = num::max(low < 0 ? -low : low, high < 0 ? -high : high);
  if constexpr (F.scheme == CodeScheme::affine || F.scheme == CodeScheme::table) {
    constexpr float kTop = static_cast<float>((1 << F.bits) - 1);
    const float range = round_half<C>(high - low);
    const float scale = F.scheme == CodeScheme::table ? round_half<C>(range / 2.0F) : round_half<C>(range / kTop);
    const bool usable = scale != 0.0F && num::is_finite(scale);
    g.scale = usable ? scale : 0.0F;
    g.zero = low;  // already a half
    if (F.scheme == CodeScheme::table && usable) g.zero = round_half<C>(num::clamp(round_half<C>(round_half<C>(high + low) / 2.0F), -65504.0F, 65504.0F));
    g.stored_scale = C::float_to_half(g.scale);
    g.stored_zero = C::float_to_half(g.zero);
  } else if constexpr (F.scheme == CodeScheme::absmax) {
    constexpr float kSteps = static_cast<float>((1 << (F.bits - 1)) - 1);
    g.scale = num::max(largest / kSteps, 1e-6F);
    g.inverse = 1.0F / g.scale;
    g.stored_scale = num::bits_of(g.scale);
  } else if constexpr (F.scheme == CodeScheme::mxfp4) {
    g.stored_scale = num::e8m0_scale_floor(largest, 6.0F);
    g.scale = num::decode_e8m0(static_cast<std::uint8_t>(g.stored_scale));
  } else if constexpr (F.scheme == CodeScheme::nvfp4) {
    g.stored_scale = num::encode_ue4m3(largest / (6.0F * head));
    const float step = e4m3_value<C>(g.stored_scale) * head;
    g.inverse = step == 0.0F ? 0.0F : 1.0F / step;
  }
  return g;
}

/// The input of a code: affine and table formats work in half precision, the others in float32.
template <class C, KernelFormat F>
KV_KERNEL inline float coding_input(float x) {
  if constexpr (F.scheme == CodeScheme::affine || F.scheme == CodeScheme::table) return round_half<C>(num::clamp(x, -65504.0F, 65504.0F));
  else return x;
}

/// The code of one input. `table` answers entry i of the format's table.
template <class C, KernelFormat F, class Table>
KV_KERNEL inline std::uint32_t code_of(float x, const GroupCoding& g, float head, const Table& table) {
  if constexpr (F.scheme == CodeScheme::affine) {
    constexpr float kTop = static_cast<float>((1 << F.bits) - 1);
    if (g.scale == 0.0F) return 0;
    return static_cast<std::uint32_t>(num::rint(num::clamp(round_half<C>(round_half<C>(x - g.zero) / g.scale), 0.0F, kTop)));
  } else if constexpr (F.scheme == CodeScheme::table) {
    if (g.scale == 0.0F) return 0;
    const float at = round_half<C>(round_half<C>(x - g.zero) / g.scale);
    std::uint32_t best = 0;
    float nearest = num::infinity();
    for (int i = 0; i < (1 << F.bits); ++i) {
      const float away = at - table(i);
      const float distance = away < 0 ? -away : away;
      if (distance < nearest) {
        nearest = distance;
        best = static_cast<std::uint32_t>(i);
      }
    }
    return best;
  } else if constexpr (F.scheme == CodeScheme::absmax) {
    constexpr float kHalf = static_cast<float>(1 << (F.bits - 1));
    return static_cast<std::uint32_t>(static_cast<std::int32_t>(num::rint(num::clamp(x * g.inverse, -kHalf, kHalf - 1.0F)))) & ((1U << F.bits) - 1U);
  } else if constexpr (F.scheme == CodeScheme::e4m3) {
    return num::encode_e4m3(x / head);
  } else if constexpr (F.scheme == CodeScheme::mxfp4) {
    return num::encode_e2m1(x / g.scale);
  } else {
    return num::encode_e2m1(x * g.inverse);
  }
}

/// Scale and zero point of a group as decoding uses them.
struct GroupValue {
  float scale = 0.0F, zero = 0.0F;
};
template <class C, KernelFormat F>
KV_KERNEL inline GroupValue group_value(std::uint32_t stored_scale, std::uint32_t stored_zero, float head) {
  if constexpr (F.scheme == CodeScheme::affine || F.scheme == CodeScheme::table)
    return {C::half_to_float(static_cast<std::uint16_t>(stored_scale)), C::half_to_float(static_cast<std::uint16_t>(stored_zero))};
  else if constexpr (F.scheme == CodeScheme::absmax) return {num::float_of(stored_scale), 0.0F};
  else if constexpr (F.scheme == CodeScheme::mxfp4) return {num::decode_e8m0(static_cast<std::uint8_t>(stored_scale)), 0.0F};
  else if constexpr (F.scheme == CodeScheme::nvfp4) return {e4m3_value<C>(stored_scale), 0.0F};
  else return {head, 0.0F};
}

/// The value of a code. Formats whose reference keeps decoded values in the cache's dtype round to D.
template <class C, KernelFormat F, Dtype D, class Table>
KV_KERNEL inline float value_of(std::uint32_t code, const GroupValue& g, float head, const Table& table) {
  const auto in_dtype = [](float x) { return load16<C, D>(store16<C, D>(x)); };
  if constexpr (F.scheme == CodeScheme::plain) {
    return load16<C, D>(static_cast<std::uint16_t>(code));
  } else if constexpr (F.scheme == CodeScheme::affine) {
    return g.scale == 0.0F ? g.zero : num::fma(static_cast<float>(code), g.scale, g.zero);
  } else if constexpr (F.scheme == CodeScheme::table) {
    return g.scale == 0.0F ? g.zero : num::fma(table(static_cast<int>(code)), g.scale, g.zero);
  } else if constexpr (F.scheme == CodeScheme::absmax) {
    const auto value = static_cast<float>(static_cast<std::int32_t>(code << (32 - F.bits)) >> (32 - F.bits));
    return in_dtype(value * g.scale);
  } else if constexpr (F.scheme == CodeScheme::e4m3) {
    return in_dtype(e4m3_value<C>(code) * head);
  } else if constexpr (F.scheme == CodeScheme::mxfp4) {
    return in_dtype(e2m1_value<C>(code) * g.scale);
  } else {
    return in_dtype(e2m1_value<C>(code) * g.scale * head);
  }
}

}  // namespace kvatlas::gpu
