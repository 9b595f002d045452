// Coded rows of a case as the reference of the integer mode takes them.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu/verify/parts.hpp"
#include "reference/primitives/integer_attention.hpp"

namespace kvatlas::gpu {

/// Unpacks the first `coded` rows of one head; rows behind them are taken from `values`.
class IntegerRows {
 public:
  IntegerRows(const KernelFormat& format, const CodedHead& head, std::int64_t coded, View<const float> values);
  CodedRows rows() const;

 private:
  KernelFormat format_;
  std::int64_t coded_;
  View<const float> values_;
  std::vector<std::int16_t> codes_;
  std::vector<float> scales_, zeros_;
};

}  // namespace kvatlas::gpu
