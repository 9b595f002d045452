// PrefixKV's budgets: every layer keeps the tokens that together hold one and the same part of its attention.
#pragma once

#include <cstdint>
#include <vector>

namespace kvatlas::methods::prefixkv_parts {

/// Tokens that leave each layer so that all of them lose about `target` together. Of a layer's scores in falling order, those stay that
/// reach a part p of their sum first, and `protect` more; p is bisected in [0, 1] until less than 5 tokens are missing or too many, at
/// most 64 times (float64; running sums over whole scores, exact up to 2^53).
/// source  PrefixKV prefixkv.py (obtain_cdf_num), there without an end where scores tie
std::vector<std::int64_t> leave_by_prefix(std::vector<std::vector<double>> scores, double target, std::int64_t protect);

/// The same scaled so that the layers' sum is `target` before it is rounded down.
std::vector<std::int64_t> leave_of_share(std::vector<std::vector<double>> scores, double share, std::int64_t protect);

}  // namespace kvatlas::methods::prefixkv_parts
