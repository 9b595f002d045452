// The four ways in which a caller or the environment can be wrong, one way in which we are, and how sentences are put together.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
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

namespace detail {

/// One argument of cat() with its type erased: how it is spelled is compiled once, and not in every file.
class Piece {
 public:
  Piece(std::string_view text) : kind_(Kind::text), text_(text) {}
  Piece(const std::string& text) : kind_(Kind::text), text_(text) {}
  Piece(const char* text) : kind_(Kind::text), text_(text) {}
  template <std::integral T>
  Piece(T value) {
    if constexpr (std::same_as<T, bool>) {
      kind_ = Kind::text, text_ = value ? "true" : "false";
    } else if constexpr (std::same_as<T, char>) {
      kind_ = Kind::character, character_ = value;
    } else if constexpr (std::signed_integral<T>) {
      kind_ = Kind::integer, integer_ = value;
    } else {
      kind_ = Kind::natural, natural_ = value;
    }
  }
  Piece(float value) : kind_(Kind::single), single_(value) {}
  Piece(double value) : kind_(Kind::real), real_(value) {}

  void append_to(std::string& out) const;

 private:
  enum class Kind : std::uint8_t { text, character, integer, natural, single, real };
  Kind kind_ = Kind::text;
  std::string_view text_{};
  union {
    char character_;
    std::int64_t integer_;
    std::uint64_t natural_;
    float single_;
    double real_;
  };
};
std::string joined(std::span<const Piece> pieces);

}  // namespace detail

/// Concatenates text, characters and numbers (shortest decimal form) into one string.
template <class... Parts>
std::string cat(const Parts&... parts) {
  const std::array<detail::Piece, sizeof...(Parts)> pieces{detail::Piece(parts)...};
  return detail::joined(pieces);
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
