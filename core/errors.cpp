#include "core/errors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace kvatlas {

namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1] ? 1U : 0U)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string_view closest(std::string_view word, std::span<const std::string_view> candidates) {
  std::string_view best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 2);
  for (const std::string_view candidate : candidates) {
    std::size_t distance = edit_distance(word, candidate);
    // What a word begins is meant before what it resembles: "h10" is h100, not a10; the shortest such name first.
    if (!word.empty() && candidate.starts_with(word)) distance = 0;
    const bool shorter = distance == 0 && candidate.size() < best.size();
    if (distance < best_distance || (distance == best_distance && (best.empty() || shorter))) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string unknown_name(std::string_view kind, std::string_view word, std::span<const std::string_view> candidates) {
  if (const std::string_view guess = closest(word, candidates); !guess.empty())
    return cat("\"", word, "\": unknown ", kind, "; did you mean \"", guess, "\"?");
  std::string allowed;
  for (const std::string_view candidate : candidates) allowed += cat(allowed.empty() ? "" : ", ", candidate);
  return cat("\"", word, "\": unknown ", kind, "; allowed: ", allowed);
}

namespace detail {
void Piece::append_to(std::string& out) const {
  const auto number = [&out](auto value) {
    fmt::memory_buffer digits;
    fmt::format_to(fmt::appender(digits), "{}", value);
    out.append(digits.data(), digits.size());
  };
  switch (kind_) {
    case Kind::text: out += text_; break;
    case Kind::character: out += character_; break;
    case Kind::integer: number(integer_); break;
    case Kind::natural: number(natural_); break;
    case Kind::single: number(single_); break;
    case Kind::real: number(real_); break;
  }
}

std::string joined(std::span<const Piece> pieces) {
  std::string out;
  for (const Piece& p : pieces) p.append_to(out);
  return out;
}

void assert_failed(const char* condition, const char* sentence, const char* file, int line) {
  throw std::logic_error(cat("kvatlas is wrong: ", sentence, " (", condition, ", ", file, ":", line, ")"));
}
}  // namespace detail

}  // namespace kvatlas
