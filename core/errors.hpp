// The four ways in which a caller or the environment can be wrong, one way in which we are, and the door to formatting.
#pragma once

#include <fmt/format.h>

#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace kvatlas {

/// Everything that kvatlas throws on purpose. The message is one sentence: field, value, what is allowed.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
class InvalidArgument : public Error {  // the caller passed something that cannot be
  using Error::Error;
};
class Unsupported : public Error {  // legal in principle, not offered by this method or build
  using Error::Error;
};
class IoError : public Error {  // a file or the store
  using Error::Error;
};
class DeviceError : public Error {  // a GPU or its driver
  using Error::Error;
};

/// Concatenates anything that {fmt} can print into one string.
template <class... Parts>
std::string cat(const Parts&... parts) {
  fmt::memory_buffer buffer;
  (fmt::format_to(std::back_inserter(buffer), "{}", parts), ...);
  return fmt::to_string(buffer);
}

/// The candidate closest to `word` by edit distance, or an empty view when none is close enough to be meant.
std::string_view closest(std::string_view word, std::span<const std::string_view> candidates);

/// `"h10": unknown GPU; did you mean "h100-sxm"?` or, without a close candidate, what is allowed.
std::string unknown_name(std::string_view kind, std::string_view word, std::span<const std::string_view> candidates);

namespace detail {
[[noreturn]] void assert_failed(const char* condition, const char* sentence, const char* file, int line);
}

}  // namespace kvatlas

/// Our own bug, on in every build. Not for input of a caller.
#define KV_ASSERT(condition, sentence)                                                         \
  do {                                                                                         \
    if (!(condition)) ::kvatlas::detail::assert_failed(#condition, sentence, __FILE__, __LINE__); \
  } while (false)
