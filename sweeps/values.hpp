// Lists and ranges as users write them: 2|4, 512..4096x2, 4K..128K+4K, and recipes whose parameters hold them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::sweep {

/// The most values that one range or one recipe may stand for; a typing error should not fill a disk.
inline constexpr std::size_t kMostValues = 100'000;

/// Whole numbers of "4096", "4K|8K", "512..4096x2" (multiply) and "4K..128K+4K" (add; "1..8" adds 1), in the order
/// written; the end is part of a range when a step meets it.
/// throws InvalidArgument with one sentence that starts with `what`
std::vector<std::int64_t> parse_sizes(std::string_view what, std::string_view text);

/// The texts that "2|4" or a range stands for; a text without both is itself. Numbers may have decimals: "0.1..0.5+0.1".
/// throws InvalidArgument with one sentence that starts with `what`
std::vector<std::string> expand_value(std::string_view what, std::string_view text);

/// Every recipe that a pattern stands for: "kivi:bits=2|4,group_size=32|64" are four, the last list changing fastest.
/// throws InvalidArgument with one sentence
std::vector<std::string> expand_recipe(std::string_view pattern);

}  // namespace kvatlas::sweep
