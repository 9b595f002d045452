// Rows of one layer that a method may thin out: keys and values in the dtype, head by head, and words of state per slot.
// A slot is a place in the store; slots are in the order of the text. Buffers shrink with what is dropped.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reference/cache.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas {

/// Runs of equally long records, one run a head; heads may hold different counts.
class SlotBytes {
 public:
  SlotBytes(int heads, std::int64_t record_bytes) : record_(record_bytes), runs_(static_cast<std::size_t>(heads)) {}

  int heads() const { return static_cast<int>(runs_.size()); }
  std::int64_t count(int head) const { return static_cast<std::int64_t>(runs_[static_cast<std::size_t>(head)].size()) / record_; }
  std::span<std::byte> at(int head, std::int64_t slot);
  std::span<const std::byte> at(int head, std::int64_t slot) const;
  std::span<std::byte> grow(int head);  // a new last slot, zeroed
  void keep(int head, const Slots& slots);
  void truncate(int head, std::int64_t count);
  /// Buffers "<prefix>/head<h>".
  void buffers(const std::string& prefix, const NamedBuffer& like, std::vector<NamedBuffer>& out) const;
  /// throws InvalidArgument when a buffer is missing or not whole records
  void load(const std::string& prefix, std::span<const NamedBuffer> saved);

 private:
  std::int64_t record_;
  std::vector<std::vector<std::byte>> runs_;
};

/// One unsigned word of 1 to 8 bytes per slot: attention mass (num::to_mass), a count of queries, a position; or a longer
/// record, reached through slots() alone.
class SlotWords {
 public:
  SlotWords(int heads, std::string_view component, int word_bytes)
      : component_(component), word_(word_bytes), slots_(heads, word_bytes) {}

  std::string_view component() const { return component_; }
  std::uint64_t get(int head, std::int64_t slot) const;
  void set(int head, std::int64_t slot, std::uint64_t value);
  void add(int head, std::int64_t slot, std::uint64_t value) { set(head, slot, get(head, slot) + value); }
  std::vector<std::uint64_t> all(int head) const;
  SlotBytes& slots() { return slots_; }
  const SlotBytes& slots() const { return slots_; }

 private:
  std::string_view component_;  // a literal
  int word_;
  SlotBytes slots_;
};

/// Keys and values of one layer in the dtype, with any number of words beside each slot.
class TokenRows {
 public:
  TokenRows(int heads, int k_dim, int v_dim, Dtype dtype);

  /// Adds a word to every slot, of any length where its bytes are used as they lie; before the first row.
  void add_words(std::string_view component, int word_bytes);
  SlotWords& words(std::size_t which) { return words_[which]; }
  const SlotWords& words(std::size_t which) const { return words_[which]; }
  std::size_t word_count() const { return words_.size(); }
  void drop_words() { words_.clear(); }

  int heads() const { return keys_.heads(); }
  std::int64_t count(int head) const { return keys_.count(head); }
  void append(View<const float> k, View<const float> v);  // [heads, n, dim]
  void append(int head, std::span<const float> k, std::span<const float> v);
  Array keys(int head) const;                             // [count, k_dim]
  Array values(int head) const;                           // [count, v_dim]
  void set_key(int head, std::int64_t slot, std::span<const float> row);
  void set_value(int head, std::int64_t slot, std::span<const float> row);
  /// Keeps these slots of one head, ascending, and frees the others.
  void keep(int head, const Slots& slots);
  void truncate(int head, std::int64_t count);  // keeps the first `count`

  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved);

 private:
  int k_dim_, v_dim_;
  Dtype dtype_;
  SlotBytes keys_, values_;
  std::vector<SlotWords> words_;
};

}  // namespace kvatlas
