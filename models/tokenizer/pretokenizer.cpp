#include "models/tokenizer/pretokenizer.hpp"

#include <algorithm>
#include <array>
#include <cstddef>

#include "models/tokenizer/unicode_class.hpp"
#include "models/tokenizer/utf8.hpp"

namespace kvatlas::models {

namespace {

struct Char {
  std::size_t begin;  // byte in the text
  char32_t code;
  UnicodeClass kind;
};

bool is_newline(const Char& c) { return c.code == '\r' || c.code == '\n'; }

/// Matches one expression after another at a place; every function answers where the match ends, the place itself for none.
class Matcher {
 public:
  Matcher(const std::vector<Char>& chars, std::size_t end) : chars_(chars), end_(end) {}

  std::size_t gpt2(std::size_t i) const {
    if (const std::size_t n = contraction(i, false); n > i) return n;
    const std::size_t word = chars_[i].code == ' ' && i + 1 < end_ && chars_[i + 1].kind != UnicodeClass::space ? i + 1 : i;
    if (chars_[word].kind != UnicodeClass::space) return run(word, chars_[word].kind);
    return spaces(i);
  }

  std::size_t llama3(std::size_t i, std::size_t digits) const {
    if (const std::size_t n = contraction(i, true); n > i) return n;
    const UnicodeClass kind = chars_[i].kind;
    if (kind == UnicodeClass::letter) return run(i, kind);
    if (kind != UnicodeClass::number && !is_newline(chars_[i]) && i + 1 < end_ && chars_[i + 1].kind == UnicodeClass::letter)
      return run(i + 1, UnicodeClass::letter);
    if (kind == UnicodeClass::number) return std::min(run(i, kind), i + digits);
    const std::size_t mark = chars_[i].code == ' ' ? i + 1 : i;
    if (mark < end_ && chars_[mark].kind == UnicodeClass::other) {
      std::size_t n = run(mark, UnicodeClass::other);
      while (n < end_ && is_newline(chars_[n])) ++n;
      return n;
    }
    const std::size_t n = run(i, UnicodeClass::space);
    for (std::size_t last = n; last > i; --last)
      if (is_newline(chars_[last - 1])) return last;
    return spaces(i);
  }

 private:
  std::size_t run(std::size_t i, UnicodeClass kind) const {
    while (i < end_ && chars_[i].kind == kind) ++i;
    return i;
  }
  /// \s+(?!\S)|\s+: a run of spaces leaves its last one to the word behind it.
  std::size_t spaces(std::size_t i) const {
    const std::size_t n = run(i, UnicodeClass::space);
    return n == end_ || n == i + 1 ? n : n - 1;
  }
  std::size_t contraction(std::size_t i, bool any_case) const {
    if (chars_[i].code != '\'') return i;
    const auto letter = [&](std::size_t at) -> char32_t {
      if (at >= end_) return 0;
      const char32_t code = chars_[at].code;
      if (any_case && code >= 'A' && code <= 'Z') return code + 32;
      return any_case && code == 0x17F ? 's' : code;  // the long s folds to s
    };
    const char32_t a = letter(i + 1), b = letter(i + 2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return i + 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return i + 3;
    return i;
  }

  const std::vector<Char>& chars_;
  std::size_t end_;  // where the stretch ends in which expressions match
};

struct Name {
  std::string_view name;
  Pretokenizer kind;
};
constexpr std::array<Name, 9> kNames{{{"gpt-2", Pretokenizer::gpt2}, {"gpt2", Pretokenizer::gpt2}, {"smollm", Pretokenizer::smollm},
    {"llama-bpe", Pretokenizer::llama3}, {"llama3", Pretokenizer::llama3}, {"llama-v3", Pretokenizer::llama3},
    {"qwen2", Pretokenizer::qwen2}, {"qwen3", Pretokenizer::qwen2}, {"deepseek-r1-qwen", Pretokenizer::qwen2}}};

}  // namespace

std::optional<Pretokenizer> find_pretokenizer(std::string_view name) {
  for (const Name& n : kNames)
    if (n.name == name) return n.kind;
  return std::nullopt;
}

std::string_view pretokenizer_names() { return "gpt-2, smollm, llama-bpe, qwen2 (or a synonym of these)"; }

std::vector<std::string_view> pretokenize(Pretokenizer kind, std::string_view text) {
  std::vector<Char> chars;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char c = utf8_char(text, at);
    chars.push_back({at, c.code, unicode_class(c.code)});
    at += c.bytes;
  }
  std::vector<std::string_view> out;
  const auto begin_of = [&](std::size_t i) { return i < chars.size() ? chars[i].begin : text.size(); };
  std::size_t stretch = chars.size();
  for (std::size_t i = 0; i < chars.size();) {
    std::size_t next = i + 1;
    if (kind == Pretokenizer::smollm) {
      if (i == 0 || i == stretch) {  // a digit or the beginning: where is the next digit?
        stretch = i;
        while (stretch < chars.size() && chars[stretch].kind != UnicodeClass::number) ++stretch;
      }
      if (stretch > i) {
        next = Matcher(chars, stretch).gpt2(i);
      } else {
        stretch = next;
      }
    } else if (kind == Pretokenizer::gpt2) {
      next = Matcher(chars, stretch).gpt2(i);
    } else {
      next = Matcher(chars, stretch).llama3(i, kind == Pretokenizer::llama3 ? 3 : 1);
    }
    out.push_back(text.substr(begin_of(i), begin_of(next) - begin_of(i)));
    i = next;
  }
  return out;
}

}  // namespace kvatlas::models
