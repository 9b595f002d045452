#include "models/tokenizer/special_tokens.hpp"

#include <algorithm>
#include <cstdint>

#include "core/errors.hpp"

namespace kvatlas::models {

std::size_t SpecialTokens::child(std::size_t node, char c) const {
  const auto found = children_.find(node * 256 + static_cast<unsigned char>(c));
  return found == children_.end() ? 0 : found->second;
}

void SpecialTokens::add(std::string_view text, TokenId id) {
  KV_ASSERT(!text.empty(), "a special token has a text");
  std::size_t node = 0;
  for (const char c : text) {
    std::size_t next = child(node, c);
    if (next == 0) {
      next = ids_.size();
      children_.emplace(node * 256 + static_cast<unsigned char>(c), next);
      ids_.push_back(kNoToken);
    }
    node = next;
  }
  if (ids_[node] == kNoToken) ids_[node] = id;
  const auto place = std::lower_bound(lengths_.begin(), lengths_.end(), text.size(), std::greater<>());
  if (place == lengths_.end() || *place != text.size()) lengths_.insert(place, text.size());
}

template <class Found>
void SpecialTokens::walk(std::string_view text, std::size_t at, const Found& found) const {
  std::size_t node = 0;
  for (std::size_t i = at; i < text.size(); ++i) {
    node = child(node, text[i]);
    if (node == 0) return;
    if (ids_[node] != kNoToken) found(i + 1 - at, ids_[node]);
  }
}

std::vector<Fragment> SpecialTokens::split(std::string_view text) const {
  // Where tokens begin, with one bit for each length (in the order of lengths_) that matches there.
  const std::size_t words = (lengths_.size() + 63) / 64;
  std::vector<std::size_t> places;
  std::vector<std::uint64_t> matches;
  for (std::size_t at = 0; !lengths_.empty() && at < text.size(); ++at) {
    bool any = false;
    walk(text, at, [&](std::size_t bytes, TokenId) {
      if (!any) {
        places.push_back(at);
        matches.resize(matches.size() + words);
        any = true;
      }
      const auto order = static_cast<std::size_t>(std::lower_bound(lengths_.begin(), lengths_.end(), bytes, std::greater<>()) - lengths_.begin());
      matches[matches.size() - words + order / 64] |= std::uint64_t{1} << (order % 64);
    });
  }

  std::vector<bool> taken(text.size());
  struct Cut {
    std::size_t at, bytes;
  };
  std::vector<Cut> cuts;
  for (std::size_t order = 0; order < lengths_.size(); ++order) {
    const std::size_t bytes = lengths_[order];
    for (std::size_t p = 0; p < places.size(); ++p) {
      if ((matches[p * words + order / 64] >> (order % 64) & 1U) == 0) continue;
      // What was taken before is at least as long: free ends mean that all between them is free.
      const std::size_t at = places[p];
      if (taken[at] || taken[at + bytes - 1]) continue;
      std::fill_n(taken.begin() + static_cast<std::ptrdiff_t>(at), bytes, true);
      cuts.push_back({at, bytes});
    }
  }
  std::sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.at < b.at; });

  std::vector<Fragment> out;
  std::size_t done = 0;
  for (const Cut& cut : cuts) {
    if (cut.at > done) out.push_back({text.substr(done, cut.at - done)});
    TokenId token = kNoToken;
    walk(text, cut.at, [&](std::size_t bytes, TokenId id) {
      if (bytes == cut.bytes) token = id;
    });
    out.push_back({text.substr(cut.at, cut.bytes), token});
    done = cut.at + cut.bytes;
  }
  if (done < text.size()) out.push_back({text.substr(done)});
  return out;
}

}  // namespace kvatlas::models
